"""The loss as kernels: launches of each call, both directions, statistics, odd batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sede_kernels import MemoryBank, SEDELoss, functional
from tests.ptx.cuda.oracle import assert_close, unit
from tests.ptx.machine import cuda

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FLOORS = {F32: 5e-6, BF16: 8e-3, F16: 1e-3}
B, K, D = 21, 150, 64
OPTIONS: dict[str, dict[str, Any]] = {
    "attached": {"hardness": 3.0, "detach_weights": False, "margin": 0.2, "reduction": "sum"},
    "rows": {"hardness": 3.0, "normalize_weights": False, "reduction": "none"},
    "debiased": {"hardness": 2.0, "tau_plus": 0.1, "in_batch_negatives": True},
    "positives": {"hardness": 2.0, "false_negatives": "positive", "in_batch_negatives": True,
                  "positive_focus": 2.0},
    "focused rows": {"positive_focus": 0.5, "reduction": "none", "hardness": 1.0},
}  # fmt: skip


def launches(call: Callable[[], Any]) -> tuple[int, Any]:
    before = cuda.report()[0]
    out = call()
    return cuda.report()[0] - before, out


def ids(rows: int, seed: int) -> Tensor:
    return torch.randint(12, (rows,), generator=torch.Generator().manual_seed(seed))


def both(backend: str, options: dict[str, Any], to: torch.dtype, kept: torch.dtype) -> list[Tensor]:
    """Loss, gradients and statistics of two directions; learned temperature and hardness."""
    leaves = [unit(B, D, seed).to(kept).to(to).requires_grad_() for seed in range(4)]
    banks = [unit(K, D, seed).to(kept).to(to) for seed in (7, 8)]
    wide = torch.promote_types(to, F32)
    learned = {"temperature": 0.1} | {k: v for k, v in options.items() if k == "hardness"}
    scalars = {k: torch.tensor(v, dtype=wide, requires_grad=True) for k, v in learned.items()}
    loss, stats = functional.symmetric_info_nce(
        *leaves, *banks, ids=ids(B, 5), backend=backend, return_stats=True,
        **{**options, **scalars},
    )  # fmt: skip
    weight = torch.linspace(0.5, 2.0, B, dtype=loss.dtype) if loss.ndim else 1.7
    grads = torch.autograd.grad((loss * weight).sum(), [*leaves, *scalars.values()])
    return [loss.detach(), *grads, *(value for side in stats for value in side)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_two_directions(name: str, dtype: torch.dtype) -> None:
    found = both("cuda", OPTIONS[name], dtype, dtype)
    truth = both("reference", OPTIONS[name], torch.float64, dtype)
    for number, (value, exact) in enumerate(zip(found, truth, strict=True)):
        assert_close(f"result {number}", value, exact, FLOORS[dtype])


def bank_of(size: int, dim: int, kept: torch.dtype) -> MemoryBank:
    """Half full, so that it has holes."""
    bank = MemoryBank(size, dim, dtype=kept)
    bank.enqueue(unit(size // 2, dim, 9), torch.arange(size // 2) + 100)
    return bank


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
def test_launches_of_one_bank(dim: int, learned: bool) -> None:
    bank = bank_of(80, dim, BF16)
    query, key = (unit(9, dim, seed).to(BF16).requires_grad_() for seed in (1, 2))
    tau = torch.tensor(0.1, requires_grad=True) if learned else 0.1
    forward, loss = launches(
        lambda: functional.weighted_info_nce(
            query, key, bank, temperature=tau, hardness=3.0, query_ids=ids(9, 3), backend="cuda"
        )
    )
    backward, _ = launches(loss.backward)
    assert (forward, backward) == (2, 1)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_launches_of_a_criterion(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDE_BACKEND", "cuda")
    query = unit(6, 64, 11).to(dtype).requires_grad_()
    text, other = unit(6, 64, 12).to(dtype), unit(6, 64, 13).to(dtype)
    for in_batch, most in ((False, (2, 1)), (True, (3, 3))):
        criterion = SEDELoss(size=20, dim=64, dtype=dtype, in_batch_negatives=in_batch)
        criterion.enqueue(text, other, ids=torch.arange(6) + 50)
        call = lambda c=criterion: c(query, text, other, text, ids=torch.arange(6))  # noqa: E731
        forward, loss = launches(call)
        backward, _ = launches(loss.backward)
        assert (forward, backward) == most


#: Each of them once took launches of its own.
ALONE: dict[str, dict[str, Any]] = {
    "margin": {"margin": 0.1},
    "focus": {"positive_focus": 1.0},
    "positives": {"false_negatives": "positive"},
    "attached": {"detach_weights": False},
    "all": {"margin": 0.1, "positive_focus": 2.0, "false_negatives": "positive",
            "detach_weights": False},
}  # fmt: skip


@pytest.mark.parametrize("dim", [64, 256, 512])
@pytest.mark.parametrize("name", ALONE)
def test_no_option_takes_a_launch_more(name: str, dim: int) -> None:
    found = []
    for backend, to in (("cuda", BF16), ("reference", torch.float64)):
        query, key, bank = (unit(n, dim, n).to(BF16).to(to) for n in (19, 19, 200))
        query.requires_grad_(), key.requires_grad_()
        forward, loss = launches(
            lambda q=query, k=key, m=bank, name=backend, o=ALONE[name]: (
                functional.weighted_info_nce(
                    q, k, m, hardness=3.0, query_ids=ids(19, 3), bank_ids=ids(200, 4),
                    backend=name, **o,
                )
            )
        )  # fmt: skip
        backward, grads = launches(lambda x=loss, of=(query, key): torch.autograd.grad(x, of))
        assert (forward, backward) == ((2, 1) if backend == "cuda" else (0, 0))
        found.append((loss.detach(), *grads))
    for value, truth in zip(*found, strict=True):
        assert_close(name, value, truth, FLOORS[BF16])


@pytest.mark.usefixtures("many_processors")
def test_a_bank_in_more_parts_than_a_warp_has_lanes() -> None:
    """Two weighted sums of each part, and their statistics."""
    found = []
    for backend, to in (("cuda", BF16), ("reference", torch.float64)):
        query, key, bank = (unit(n, 64, n).to(BF16).to(to) for n in (3, 3, 160 * 64 - 5))
        query.requires_grad_()
        loss, stats = functional.weighted_info_nce(
            query, key, bank, hardness=3.0, detach_weights=False, return_stats=True,
            backend=backend,
        )  # fmt: skip
        found.append((loss.detach(), *torch.autograd.grad(loss, query), *stats))
    for value, truth in zip(*found, strict=True):
        assert_close("parts", value, truth, FLOORS[BF16])


def against_reference(
    query: Tensor, key: Tensor, bank: Tensor | None, floor: float, **options: Any
) -> None:
    """The row losses and their gradients."""
    found = []
    for backend, to in (("cuda", query.dtype), ("reference", torch.float64)):
        leaves = [leaf.to(to).requires_grad_() for leaf in (query, key)]
        loss = functional.weighted_info_nce(
            *leaves, None if bank is None else bank.to(to), reduction="none", backend=backend,
            **options,
        )  # fmt: skip
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
    for value, truth in zip(*found, strict=True):
        assert_close("rows", value, truth, floor)


def test_positives_of_a_batch_at_a_low_temperature() -> None:
    """e^{s / tau} of the further positives is beyond fp32; gradients have 200^2 roundings of s."""
    query = unit(12, 64, 1)
    query[6:] = query[:6]
    query = query + 0.1 * unit(12, 64, 2)
    against_reference(
        query, query.roll(6, 0), None, 1e-3, temperature=0.005, query_ids=torch.arange(12) % 6,
        in_batch_negatives=True, false_negatives="positive",
    )  # fmt: skip


def test_a_debiased_loss_at_its_floor() -> None:
    """Rows whose positives take all that the negatives have, and rows whose do not."""
    query, key, bank = (unit(n, 64, n) for n in (20, 20, 150))
    key = torch.cat([query[:10], key[10:]])
    for temperature in (0.1, 0.5):
        against_reference(query, key, bank, FLOORS[F32], temperature=temperature, tau_plus=0.3)


@pytest.mark.parametrize(("name", "most"), [("attached", 4), ("margin", 5), ("all", 8)])
def test_launches_in_chunks(name: str, most: int) -> None:
    """Wide rows: similarities, weights, both sums at once, and the end; the limits of a margin."""
    found = []
    for backend, to in (("cuda", F32), ("reference", torch.float64)):
        query, key, bank = (unit(n, 520, n).to(to) for n in (9, 9, 80))
        query.requires_grad_()
        forward, loss = launches(
            lambda q=query, k=key, m=bank, name=backend, o=ALONE[name]: (
                functional.weighted_info_nce(
                    q, k, m, hardness=3.0, query_ids=ids(9, 3), bank_ids=ids(80, 4),
                    backend=name, **o,
                )
            )
        )  # fmt: skip
        backward, grads = launches(lambda x=loss, of=query: torch.autograd.grad(x, of))
        assert (forward, backward) == ((most, 1) if backend == "cuda" else (0, 0))
        found.append((loss.detach(), *grads))
    for value, truth in zip(*found, strict=True):
        assert_close(name, value, truth, FLOORS[F32])


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)], ids=str)
def test_a_batch_with_every_option(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Two directions, keys of two dtypes, more rows than a tile; two launches for the batch."""
    found, options = [], {"hardness": 3.0, "in_batch_negatives": True, **ALONE["all"]}
    for backend in ("cuda", "reference"):
        leaves = [
            unit(70, 64, n).to(kept).to(torch.float64 if backend == "reference" else kept)
            for n, kept in enumerate((dtypes[0], dtypes[0], dtypes[0], dtypes[1]))
        ]
        banks = [unit(80, 64, n).to(dtypes[0]).to(leaves[0].dtype) for n in (7, 8)]
        for leaf in leaves:
            leaf.requires_grad_()
        loss = functional.symmetric_info_nce(
            *leaves, *banks, ids=ids(70, 5), backend=backend, **options,
        )  # fmt: skip
        backward, grads = launches(lambda x=loss, of=leaves: torch.autograd.grad(x, of))
        assert backward == (3 if backend == "cuda" else 0)
        found.append((loss.detach(), *grads))
    for value, truth in zip(*found, strict=True):
        assert_close("batch", value, truth, FLOORS[dtypes[0]])


def test_banks_of_two_sizes() -> None:
    found = []
    for backend, to in (("cuda", BF16), ("reference", torch.float64)):
        image, text = (unit(7, 64, seed).to(BF16).to(to).requires_grad_() for seed in (1, 2))
        banks = [unit(size, 64, size).to(BF16).to(to) for size in (90, 33)]
        loss = functional.symmetric_info_nce(image, text, image, text, *banks, backend=backend)
        found.append((loss.detach(), *torch.autograd.grad(loss, (image, text))))
    for value, truth in zip(*found, strict=True):
        assert_close("two sizes", value, truth, FLOORS[BF16])


def test_a_batch_that_a_flag_leaves_out() -> None:
    query, key, bank = (unit(n, 64, n).to(BF16) for n in (9, 9, 40))
    query.requires_grad_()
    found = []
    for flag in (torch.tensor(False), False):
        loss = functional.weighted_info_nce(
            query, key, bank, in_batch_negatives=flag, backend="cuda"
        )
        found.append((loss.detach(), *torch.autograd.grad(loss, query)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_nothing_counts_and_nothing_is_there() -> None:
    query, key = unit(5, 64, 1).to(BF16), unit(5, 64, 2).to(BF16).requires_grad_()
    for bank, names in ((unit(9, 64, 3).to(BF16), torch.full((9,), -1)), (unit(0, 64, 3), None)):
        loss, stats = functional.weighted_info_nce(
            query, key, bank.to(BF16), bank_ids=names, return_stats=True, backend="cuda"
        )
        assert loss == 0 and not torch.autograd.grad(loss, key)[0].any()
        assert (stats.hardest == -torch.inf).all()


def test_a_nan_stays_in_its_row_and_runs_are_equal_to_the_bit() -> None:
    query, key, bank = (unit(n, 64, n).to(BF16) for n in (9, 9, 80))
    query[3] = torch.nan
    runs = [
        functional.weighted_info_nce(
            query, key, bank, hardness=2.0, reduction="none", backend="cuda"
        )
        for _ in range(2)
    ]
    assert runs[0][3].isnan() and runs[0].isnan().sum() == 1
    assert torch.equal(runs[0].nan_to_num(), runs[1].nan_to_num())


def test_losses_near_zero_keep_their_digits() -> None:
    query = unit(5, 64, 1)
    bank = unit(3, 64, 2)
    options = {"temperature": 0.05, "reduction": "none"}
    found = functional.weighted_info_nce(query, query, bank, backend="cuda", **options)
    truth = functional.weighted_info_nce(
        query.double(), query.double(), bank.double(), backend="reference", **options
    )
    assert 0 < float(truth.min()) < 1e-6
    assert float(((found - truth) / truth).abs().max()) < 1e-5


@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "batch"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_limit_of_each_row(dtype: torch.dtype, in_batch: bool) -> None:
    limit, found = torch.linspace(-0.1, 0.2, 9), []
    for backend, to in (("cuda", dtype), ("reference", torch.float64)):
        query, key, bank = (unit(n, 64, n + 1).to(dtype).to(to) for n in (9, 9, 80))
        query.requires_grad_(), key.requires_grad_()
        loss = functional.weighted_info_nce(
            query, key, bank, limit=limit.to(torch.promote_types(to, F32)), backend=backend,
            in_batch_negatives=in_batch,
        )  # fmt: skip
        found.append((loss.detach(), *torch.autograd.grad(loss, (query, key))))
    for value, truth in zip(*found, strict=True):
        assert_close("limit", value, truth, FLOORS[dtype])
