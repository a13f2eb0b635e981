"""weighted_info_nce against the fp64 reference, and the reference against published formulas."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import MemoryBank, reference, weighted_info_nce
from sede_kernels.testing import assert_within_budget
from tests.conftest import unit

WEIGHTS = [
    pytest.param({"hardness": 0.0}, id="plain"),
    pytest.param({"hardness": 5.0, "normalize_weights": False}, id="exp-detached"),
    pytest.param(
        {"hardness": 5.0, "normalize_weights": False, "detach_weights": False}, id="exp-attached"
    ),
    pytest.param({"hardness": 5.0}, id="normalized-detached"),
    pytest.param({"hardness": 5.0, "detach_weights": False}, id="normalized-attached"),
]


def problem(
    rows: int, size: int, dim: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    return {
        "query": unit(rows, dim, dtype=dtype),
        "positive": unit(rows, dim, dtype=dtype),
        "bank": unit(size, dim, dtype=dtype),
        "query_ids": torch.randint(0, 5, (rows,)),
        "bank_ids": torch.randint(-1, 5, (size,)),
    }


def value_and_grads(case: dict[str, Tensor], **options: object) -> list[Tensor]:
    query = case["query"].clone().requires_grad_()
    positive = case["positive"].clone().requires_grad_()
    rest = {k: v for k, v in case.items() if k not in ("query", "positive", "bank")}
    loss = weighted_info_nce(query, positive, case["bank"], **rest, **options)
    assert isinstance(loss, Tensor)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), [query, positive])]


def value_and_grads_same_dtype(case: dict[str, Tensor], **options: object) -> list[Tensor]:
    """Plain PyTorch in the dtype of the inputs: the yardstick of the error budget."""
    query = case["query"].clone().requires_grad_()
    positive = case["positive"].clone().requires_grad_()
    rest = {k: v for k, v in case.items() if k not in ("query", "positive", "bank")}
    loss = reference.weighted_info_nce(query, positive, case["bank"], **rest, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), [query, positive])]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("false_negatives", ["mask", "positive", "keep"])
@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
def test_every_option_matches_the_reference_in_fp64(weights, false_negatives, in_batch) -> None:
    case = problem(7, 31, 5)
    for focus, tau_plus, margin, reduction in itertools.product(
        [0.0, 2.0], [0.0, 0.1], [None, 0.1], ["none", "mean", "sum"]
    ):
        options = {
            **weights,
            "positive_focus": focus,
            "tau_plus": tau_plus,
            "margin": margin,
            "reduction": reduction,
            "false_negatives": false_negatives,
            "in_batch_negatives": in_batch,
        }
        ours = value_and_grads(case, backend="torch", **options)
        truth = value_and_grads(case, backend="reference", **options)
        for got, want in zip(ours, truth, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11, msg=str(options))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 7), (17, 257, 31), (5, 1031, 300), (64, 130, 64)], ids=str
)
def test_low_precision_stays_in_the_error_budget(weights, dtype, shape, backend) -> None:
    case = problem(*shape, dtype=dtype)
    double = {k: v.double() if v.is_floating_point() else v for k, v in case.items()}
    options = {**weights, "in_batch_negatives": True, "reduction": "none"}
    ours = value_and_grads(case, backend=backend, **options)
    truth = value_and_grads(double, backend="reference", **options)
    single = {k: v.float() if v.is_floating_point() else v for k, v in case.items()}
    exact_inputs = value_and_grads(single, backend="reference", **options)
    eager = value_and_grads_same_dtype(case, **options)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    assert_within_budget(ours[0], truth[0], exact_inputs[0], torch.float32)
    for got, want, plain in zip(ours[1:], truth[1:], eager[1:], strict=True):
        assert_within_budget(got, want, plain, dtype)


def test_a_promise_of_unit_length_changes_no_result_on_a_cpu(backend) -> None:
    case = problem(7, 31, 5, torch.float32)
    for options in ({"hardness": 5.0}, {"temperature": 0.05}):
        plain = value_and_grads(case, backend=backend, **options)
        promised = value_and_grads(case, backend=backend, unit_length=True, **options)
        assert all(torch.equal(a, b) for a, b in zip(plain, promised, strict=True))


def test_hardness_zero_is_cross_entropy(backend) -> None:
    query, positive, bank = unit(9, 6), unit(9, 6), unit(40, 6)
    query.requires_grad_()
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ bank.T], dim=1) / 0.07
    for reduction in ("none", "mean", "sum"):
        want = F.cross_entropy(logits, torch.zeros(9, dtype=torch.long), reduction=reduction)
        got = weighted_info_nce(query, positive, bank, reduction=reduction, backend="torch")
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    single = weighted_info_nce(query.float(), positive.float(), bank.float(), backend=backend)
    torch.testing.assert_close(single.double(), F.cross_entropy(logits, logits.new_zeros(9).long()))


@pytest.mark.parametrize("detach", [False, True])
def test_normalized_weights_are_those_of_hcl(detach) -> None:
    """Robinson et al. 2021: reweighted negatives sum(imp neg) / mean(imp), imp = neg^(beta tau)."""
    query, positive, bank = unit(6, 8).requires_grad_(), unit(6, 8), unit(33, 8)
    tau, beta = 0.2, 3.0
    neg = torch.exp(query @ bank.T / tau)
    imp = (beta * tau * neg.log()).exp()
    imp = imp.detach() if detach else imp
    reweighted = (imp * neg).sum(1) / imp.mean(1)
    pos = torch.exp((query * positive).sum(1) / tau)
    want = -torch.log(pos / (pos + reweighted)).mean()
    got = weighted_info_nce(
        query, positive, bank, temperature=tau, hardness=beta, detach_weights=detach
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tau_plus", [0.01, 0.1, 0.9])
def test_debiased_estimator(tau_plus) -> None:
    """Chuang et al. 2020, written as in the paper, with its floor."""
    query, positive, bank = unit(6, 8).requires_grad_(), unit(6, 8), unit(33, 8)
    tau, n = 0.5, 33
    pos = torch.exp((query * positive).sum(1) / tau)
    neg = torch.exp(query @ bank.T / tau).sum(1)
    corrected = ((neg - tau_plus * n * pos) / (1 - tau_plus)).clamp(min=n * math.exp(-1 / tau))
    want = -torch.log(pos / (pos + corrected)).mean()
    got = weighted_info_nce(query, positive, bank, temperature=tau, tau_plus=tau_plus)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    grads = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_same_ids_as_positives_are_albef_soft_targets() -> None:
    query, positive, bank = unit(6, 8).requires_grad_(), unit(6, 8), unit(20, 8)
    ids, bank_ids = torch.tensor([0, 1, 2, 3, 3, 9]), torch.randint(0, 4, (20,))
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ bank.T], 1) / 0.07
    same = torch.cat([torch.ones(6, 1, dtype=torch.bool), ids[:, None] == bank_ids], 1)
    targets = same.double() / same.sum(1, keepdim=True)
    want = -(F.log_softmax(logits, 1) * targets).sum(1).mean()
    got = weighted_info_nce(
        query, positive, bank, query_ids=ids, bank_ids=bank_ids, false_negatives="positive"
    )
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_in_batch_only_is_the_clip_direction() -> None:
    image, text = unit(11, 5).requires_grad_(), unit(11, 5).requires_grad_()
    want = F.cross_entropy(image @ text.T / 0.1, torch.arange(11))
    got = weighted_info_nce(image, text, None, temperature=0.1, in_batch_negatives=True)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for one in (image, text):
        a, b = (torch.autograd.grad(x, one, retain_graph=True)[0] for x in (got, want))
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_positive_focus_weighs_rows_like_cross_entropy_weights(backend) -> None:
    query, positive, bank = (unit(n, 4, dtype=torch.float32) for n in (8, 8, 16))
    rows = weighted_info_nce(query, positive, bank, reduction="none", backend=backend)
    weight = (1 - torch.exp(-rows)) ** 1.5
    focused = weighted_info_nce(query, positive, bank, positive_focus=1.5, backend=backend)
    torch.testing.assert_close(focused, (weight * rows).sum() / weight.sum())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_rows_without_negatives_have_zero_loss_and_gradient(weights, backend) -> None:
    query, positive = unit(3, 4, dtype=torch.float32), unit(3, 4, dtype=torch.float32)
    query.requires_grad_()
    bank, ids = unit(5, 4, dtype=torch.float32), torch.tensor([1, 1, 1, -1, -1])
    loss = weighted_info_nce(
        query,
        positive,
        bank,
        query_ids=torch.tensor([1, 2, 1]),
        bank_ids=ids,
        reduction="none",
        backend=backend,
        **weights,
    )
    loss.sum().backward()
    assert loss[0] == 0 and loss[2] == 0 and loss[1] > 0
    assert query.grad is not None
    assert torch.equal(query.grad[[0, 2]], torch.zeros(2, 4))
    assert query.grad[1].abs().sum() > 0


@pytest.mark.parametrize("rows, size", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_no_rows_or_no_slots_give_zero(rows, size, backend) -> None:
    query = unit(rows, 4, dtype=torch.float32).requires_grad_()
    loss = weighted_info_nce(
        query, query.detach(), torch.zeros(size, 4), hardness=2.0, backend=backend
    )
    loss.backward()
    assert loss == 0
    assert query.grad is not None and torch.equal(query.grad, torch.zeros(rows, 4))


def test_a_nan_row_stays_in_its_row(backend) -> None:
    query = unit(4, 6, dtype=torch.float32)
    query[1, 2] = float("nan")
    query.requires_grad_()
    loss = weighted_info_nce(
        query, unit(4, 6, dtype=torch.float32), unit(50, 6, dtype=torch.float32),
        hardness=3.0, reduction="none", backend=backend,
    )  # fmt: skip
    loss.sum().backward()
    assert torch.isnan(loss).tolist() == [False, True, False, False]
    assert torch.isnan(query.grad).any(dim=1).tolist() == [False, True, False, False]


def test_empty_slots_may_hold_anything(backend) -> None:
    query, positive, bank = (unit(n, 8, dtype=torch.float32) for n in (5, 5, 70))
    ids = torch.arange(70)
    ids[::3] = -1
    dirty = bank.clone()
    dirty[::3] = float("nan")
    clean = weighted_info_nce(query, positive, bank, bank_ids=ids, backend=backend)
    assert torch.equal(
        clean, weighted_info_nce(query, positive, dirty, bank_ids=ids, backend=backend)
    )


def test_extreme_temperatures_do_not_overflow(backend) -> None:
    query, bank = unit(4, 16, dtype=torch.float32), unit(99, 16, dtype=torch.float32)
    for tau in (1e-3, 1e3):
        want = weighted_info_nce(
            query.double(), query.double(), bank.double(), temperature=tau, backend="reference"
        )
        got = weighted_info_nce(query, query, bank, temperature=tau, backend=backend)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    big = weighted_info_nce(query * 50, query * 50, bank * 50, temperature=0.05, backend=backend)
    assert torch.isfinite(big)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_learnable_temperature_and_hardness(detach, normalize) -> None:
    case = problem(4, 13, 3)
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def run(query, positive, temperature, hardness):
        return weighted_info_nce(
            query,
            positive,
            case["bank"],
            temperature=temperature,
            hardness=hardness,
            query_ids=case["query_ids"],
            bank_ids=case["bank_ids"],
            normalize_weights=normalize,
            detach_weights=detach,
            in_batch_negatives=True,
            backend="torch",
        )

    query = case["query"].clone().requires_grad_()
    positive = case["positive"].clone().requires_grad_()
    inputs = (query, positive, tau, beta)
    if not detach:
        assert torch.autograd.gradcheck(run, inputs)
    else:  # detached weights are not the derivative of the value; the reference defines them
        assert torch.autograd.gradcheck(lambda t, b: run(query.detach(), positive.detach(), t, b),
                                        (tau, beta))  # fmt: skip


def test_statistics(backend) -> None:
    query, positive, bank = (unit(n, 8, dtype=torch.float32) for n in (6, 6, 40))
    ids, bank_ids = torch.arange(6), torch.arange(40) % 8
    bank_ids[7] = -1
    loss, stats = weighted_info_nce(
        query, positive, bank, query_ids=ids, bank_ids=bank_ids, return_stats=True,
        reduction="none", backend=backend,
    )  # fmt: skip
    valid = (ids[:, None] != bank_ids) & (bank_ids != -1)
    s = (query @ bank.T).masked_fill(~valid, -torch.inf)
    torch.testing.assert_close(stats.loss, loss)
    torch.testing.assert_close(stats.hardest, s.amax(1))
    assert torch.equal(stats.hardest_index, s.argmax(1))
    assert torch.equal(stats.negatives, valid.sum(1))
    torch.testing.assert_close(stats.log_negatives, torch.logsumexp(s / 0.07, 1))
    torch.testing.assert_close(stats.positive, (query * positive).sum(1))


def test_memory_bank_and_transposed_queue_give_the_same_loss(backend) -> None:
    query, keys = unit(5, 8, dtype=torch.float32), unit(32, 8, dtype=torch.float32)
    ids = torch.arange(32)
    bank = MemoryBank(64, 8)
    bank.enqueue(keys, ids)
    options = {"query_ids": torch.arange(5), "hardness": 4.0, "backend": backend}
    dense = weighted_info_nce(query, query, keys, bank_ids=ids, **options)
    queue = keys.T.contiguous()
    torch.testing.assert_close(weighted_info_nce(query, query, bank, **options), dense)
    torch.testing.assert_close(
        weighted_info_nce(query, query, queue.T, bank_ids=ids, **options), dense
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_small_bank_dtypes_match_their_dense_rows(dtype, backend) -> None:
    query = unit(7, 33, dtype=torch.float32).requires_grad_()
    bank = MemoryBank(101, 33, dtype=dtype)
    bank.enqueue(unit(101, 33, dtype=torch.float32), torch.arange(101))
    loss = weighted_info_nce(query, query.detach(), bank, hardness=5.0, backend=backend)
    (grad,) = torch.autograd.grad(loss, query)
    double = query.detach().double().requires_grad_()
    want = weighted_info_nce(
        double, double.detach(), bank.dense(torch.float64), hardness=5.0, backend="reference"
    )
    (want_grad,) = torch.autograd.grad(want, double)
    # An int8 or fp16 row is exact data; bf16 kernels round the query as well.
    budget = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    assert_within_budget(loss, want, None, budget)
    assert_within_budget(grad, want_grad, None, torch.bfloat16)


BAD = [
    ({"query": torch.zeros(4)}, ValueError, r"query must be \(rows, dim\), got shape \(4,\)"),
    ({"query": torch.zeros(4, 8, dtype=torch.long)}, TypeError, "query must be float32"),
    ({"positive": torch.zeros(3, 8)}, ValueError, r"positive must be \(4, 8\) to match query"),
    ({"bank": torch.zeros(9, 5)}, ValueError, r"bank must be \(K, 8\) to match query, got \("),
    ({"bank": torch.zeros(8, 9)}, ValueError, r"is it \(D, K\)\? pass bank.T"),
    ({"bank": torch.zeros(9, 8, dtype=torch.int8)}, TypeError, "int8 bank needs its row scales"),
    ({"bank": None}, ValueError, "bank is None, so there are no negatives"),
    ({"bank": [1, 2]}, TypeError, r"must be a \(K, D\) tensor or a MemoryBank, got list"),
    ({"temperature": 0.0}, ValueError, "temperature must be > 0, got 0"),
    ({"temperature": float("nan")}, ValueError, "temperature must be > 0, got nan"),
    ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be > 0, got -1"),
    ({"temperature": torch.ones(3)}, ValueError, "one-element tensor"),
    ({"temperature": "hot"}, TypeError, "temperature must be a number, got str"),
    ({"hardness": -1.0}, ValueError, "hardness must be >= 0, got -1"),
    ({"positive_focus": -0.5}, ValueError, "positive_focus must be >= 0"),
    ({"tau_plus": 1.0}, ValueError, "tau_plus must be below 1"),
    ({"query_ids": torch.zeros(3, dtype=torch.long)}, ValueError, r"query_ids must be \(4,\)"),
    ({"query_ids": torch.zeros(4)}, TypeError, "query_ids must be integers"),
    ({"bank_ids": torch.zeros(3, dtype=torch.long)}, ValueError, r"bank_ids must be \(9,\)"),
    ({"false_negatives": "drop"}, ValueError, "one of mask, positive, keep, got 'drop'"),
    ({"false_negatives": "positive"}, ValueError, "pass query_ids"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of none, mean, sum"),
    ({"margin": float("inf")}, ValueError, "margin must be finite"),
    ({"backend": "gpu"}, ValueError, "backend must be one of auto, reference, torch"),
]  # fmt: skip


@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_bad_input_gets_one_clear_sentence(change, error, message) -> None:
    arguments = {
        "query": torch.zeros(4, 8), "positive": torch.zeros(4, 8), "bank": torch.zeros(9, 8),
        **change,
    }  # fmt: skip
    with pytest.raises(error, match=message) as caught:
        weighted_info_nce(**arguments)
    assert str(caught.value).startswith("weighted_info_nce: ")
    assert "\n" not in str(caught.value)


def test_bank_ids_beside_a_memory_bank_are_refused() -> None:
    with pytest.raises(ValueError, match="brings its own ids"):
        weighted_info_nce(
            torch.zeros(2, 4), torch.zeros(2, 4), MemoryBank(3, 4), bank_ids=torch.zeros(3).long()
        )


def test_reference_is_twice_differentiable() -> None:
    case = problem(3, 5, 4)
    query = case["query"].clone().requires_grad_()

    def run(q: Tensor) -> Tensor:
        return reference.weighted_info_nce(q, case["positive"], case["bank"], hardness=2.0)

    assert torch.autograd.gradgradcheck(
        lambda q: reference.weighted_info_nce(
            q, case["positive"], case["bank"], hardness=2.0, detach_weights=False, temperature=0.5
        ),
        query,
    )
    assert run(query).ndim == 0
