"""``limit``, the largest similarity of each row's negatives: values, gradients, refusals."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import SEDELoss, WeightedInfoNCE, symmetric_info_nce, weighted_info_nce
from sede_kernels.testing import assert_within_budget
from tests.conftest import unit

ROWS, SIZE, DIM = 5, 23, 6
IDS, BANK_IDS = torch.tensor([0, 1, 1, 2, -1]), torch.arange(SIZE) % 9 - 1
OPTIONS = {
    "plain": {},
    "hard": {"hardness": 5.0, "detach_weights": False, "reduction": "none"},
    "batch": {"hardness": 5.0, "in_batch_negatives": True, "false_negatives": "keep"},
    "positives": {"in_batch_negatives": True, "false_negatives": "positive", "tau_plus": 0.1},
}


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, bank, and limits that cut the negatives of every row but the last two."""
    query, key = (unit(ROWS, DIM, dtype=dtype).requires_grad_() for _ in range(2))
    bank = unit(SIZE, DIM, dtype=dtype)
    cosine = query.detach() @ bank.T
    middle = cosine.sort(dim=1).values[:, SIZE // 2 - 1 : SIZE // 2 + 1].mean(dim=1)
    limit = torch.tensor([0.0, 0.0, 0.0, math.inf, -math.inf], dtype=dtype)
    limit[:3] = middle[:3]
    return query, key, bank, limit


def outcome(backend: str, dtype: torch.dtype, **options: object) -> list[Tensor]:
    query, key, bank, limit = problem()
    query, key = (t.detach().to(dtype).requires_grad_() for t in (query, key))
    loss, stats = weighted_info_nce(
        query, key, bank.to(dtype), temperature=0.2, query_ids=IDS, bank_ids=BANK_IDS,
        limit=limit.to(dtype), backend=backend, return_stats=True, **options,
    )  # fmt: skip
    grads = torch.autograd.grad(loss.sum(), [query, key])
    return [loss.detach(), *grads, stats.log_negatives, stats.negatives]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_against_the_fp64_reference(name, dtype, backend) -> None:
    torch.manual_seed(3)
    want = outcome("reference", torch.float64, **OPTIONS[name])
    torch.manual_seed(3)
    got = outcome(backend, dtype, **OPTIONS[name])
    torch.manual_seed(3)
    eager = outcome("reference", dtype, **OPTIONS[name])
    assert torch.equal(got[-1], want[-1])
    for value, exact, plain in zip(got[:-1], want[:-1], eager[:-1], strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-11)
            continue
        same = exact.isfinite()
        assert torch.equal(value[~same].double(), exact[~same])
        assert_within_budget(value[same], exact[same], plain[same], dtype)


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_cross_entropy_of_what_is_left(name) -> None:
    query, key, bank, limit = problem()
    cosine = query @ bank.T
    logits = torch.cat([(query * key).sum(1, keepdim=True), cosine], 1) / 0.2
    gone = cosine > limit[:, None]
    assert gone.sum(1).tolist() == [12, 12, 12, 0, SIZE]
    logits = logits.masked_fill(F.pad(gone, (1, 0)), -math.inf)
    want = F.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.long))
    ours = weighted_info_nce(query, key, bank, temperature=0.2, limit=limit, backend=name)
    torch.testing.assert_close(ours, want)
    for got, exact in zip(
        torch.autograd.grad(ours, [query, key]),
        torch.autograd.grad(want, [query, key]),
        strict=True,
    ):
        torch.testing.assert_close(got, exact)


def test_values_by_hand(backend) -> None:
    query = torch.eye(3)[:2]
    bank = torch.tensor([[0.5, 0.0, 0.0], [0.25, 1.0, 0.0]])
    rows, stats = weighted_info_nce(
        query, query, bank, temperature=1.0, limit=torch.tensor([0.3, 1.0]), reduction="none",
        backend=backend, return_stats=True,
    )  # fmt: skip
    first = math.log(math.exp(1) + math.exp(0.25)) - 1
    second = math.log(math.exp(1) + 1 + math.exp(1)) - 1
    torch.testing.assert_close(rows, torch.tensor([first, second]))
    assert stats.negatives.tolist() == [1, 2]
    assert stats.hardest_index.tolist() == [1, 1]


@pytest.mark.parametrize("in_batch", [False, True])
def test_gradcheck_and_no_gradient_of_the_limit(in_batch, backend) -> None:
    query, key, bank, limit = problem()
    limit.requires_grad_()

    def loss(query: Tensor, key: Tensor) -> Tensor:
        found = weighted_info_nce(
            query, key, bank, temperature=0.3, hardness=2.0, detach_weights=False, limit=limit,
            in_batch_negatives=in_batch, backend=backend,
        )  # fmt: skip
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(loss, (query, key))
    assert torch.autograd.grad(loss(query, key), limit, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_a_margin_is_a_limit(name) -> None:
    query, key, bank, _ = problem()
    own = {"temperature": 0.2, "in_batch_negatives": True, "query_ids": IDS, "backend": name}
    limit = (query * key).sum(dim=1) - 0.1
    got = weighted_info_nce(query, key, bank, limit=limit, **own)
    torch.testing.assert_close(got, weighted_info_nce(query, key, bank, margin=-0.1, **own))


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_both_directions(name) -> None:
    image, text = (unit(ROWS, DIM) for _ in range(2))
    banks = [unit(SIZE, DIM) for _ in range(2)]
    limits = torch.linspace(-0.2, 0.4, 2 * ROWS).reshape(2, ROWS).double()
    one, other = (
        weighted_info_nce(a, b, bank, limit=limit, backend=name)
        for a, b, bank, limit in ((image, text, banks[0], limits[0]), (text, image, banks[1],
                                                                      limits[1]))
    )  # fmt: skip
    got = symmetric_info_nce(image, text, image, text, banks[1], banks[0], limit=limits,
                             backend=name)  # fmt: skip
    torch.testing.assert_close(got, (one + other) / 2)
    same = symmetric_info_nce(image, text, image, text, banks[1], banks[0], limit=limits[0],
                              backend=name)  # fmt: skip
    twice = symmetric_info_nce(image, text, image, text, banks[1], banks[0],
                               limit=limits[:1].expand(2, -1), backend=name)  # fmt: skip
    assert torch.equal(same, twice)
    assert not torch.equal(same, got)


def test_the_classes_pass_it_on() -> None:
    query, key, bank, limit = problem(torch.float32)
    want = weighted_info_nce(query, key, bank, limit=limit)
    assert torch.equal(WeightedInfoNCE()(query, key, bank, limit=limit), want)
    criterion = SEDELoss(SIZE, DIM)
    criterion.enqueue(bank, bank)
    got = criterion(query, key, limit=limit)
    both = {"in_batch_negatives": True, "limit": limit}
    banks = criterion.image_bank, criterion.text_bank
    assert torch.equal(got, symmetric_info_nce(query, key, query, key, *banks, **both))
    assert not torch.equal(got, criterion(query, key))


def test_compiled_in_one_graph(backend) -> None:
    query, key, bank, limit = problem(torch.float32)

    def step(query: Tensor, key: Tensor, limit: Tensor) -> Tensor:
        found = weighted_info_nce(
            query, key, bank, hardness=3.0, in_batch_negatives=True, limit=limit, backend=backend
        )
        assert isinstance(found, Tensor)
        return found

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = (
        torch.autograd.grad(run(query, key, limit), [query, key]) for run in (compiled, step)
    )
    for one, exact in zip(got, want, strict=True):
        torch.testing.assert_close(one, exact)


def test_autocast_and_dtypes(backend) -> None:
    query, key, bank, limit = problem(torch.float32)
    want = weighted_info_nce(query, key, bank, limit=limit, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(weighted_info_nce(query, key, bank, limit=limit, backend=backend), want)
    # float16 holds these bounds exactly; a bound that is not a number leaves no negative.
    half = torch.tensor([0.25, -0.5, 0.0, math.inf, math.nan], dtype=torch.float16)
    rows, stats = weighted_info_nce(
        query, key, bank, limit=half, reduction="none", backend=backend, return_stats=True
    )
    least = half.float().nan_to_num(-math.inf, math.inf, -math.inf)
    same = weighted_info_nce(query, key, bank, limit=least, reduction="none", backend=backend)
    assert torch.equal(rows, same)
    assert stats.negatives[3:].tolist() == [SIZE, 0]
    assert rows[4] == 0


def test_any_layout_counts_as_it_stands(backend) -> None:
    query, key, bank, limit = problem(torch.float32)
    want = weighted_info_nce(query, key, bank, limit=limit, backend=backend)
    apart = torch.stack([limit, limit + 9], dim=1)[:, 0]
    negated = torch.complex(torch.zeros(ROWS), -limit).conj().imag
    assert negated.is_neg()
    for view in (apart, negated):
        got = weighted_info_nce(query, key, bank, limit=view, backend=backend)
        assert torch.equal(got, want)


BAD = [
    ({"limit": torch.zeros(4), "margin": 0.1}, ValueError, "got both; pass one of them"),
    ({"limit": 0.5}, TypeError, r"limit must be a \(B,\) floating tensor"),
    ({"limit": torch.zeros(3)}, ValueError, r"limit must be \(4,\) floating.*got \(3,\)"),
    ({"limit": torch.zeros(4, 1)}, ValueError, r"limit must be \(4,\) floating"),
    ({"limit": torch.zeros(4, dtype=torch.long)}, ValueError, "got .*torch.int64"),
    ({"limit": torch.zeros(4, device="meta")}, ValueError, "limit is on meta"),
    ({"limit": torch.zeros(4).to_sparse()}, TypeError, "limit must be a dense tensor"),
]


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_bad_limits_get_one_clear_sentence(change, error, message, name) -> None:
    rows = torch.zeros(4, 8)
    with pytest.raises(error, match=message) as caught:
        weighted_info_nce(rows, rows, torch.zeros(9, 8), backend=name, **change)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=message):
        symmetric_info_nce(rows, rows, rows, rows, *[torch.zeros(9, 8)] * 2, backend=name, **change)
