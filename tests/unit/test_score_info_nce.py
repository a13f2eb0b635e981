"""score_info_nce against the fp64 specification, and that against weighted_info_nce's."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import reference, reference_scores, score_info_nce, weighted_info_nce
from sede_kernels.testing import assert_within_budget
from tests.conftest import unit


@pytest.fixture(params=["torch"])
def backend(request):
    return request.param


OPTIONS = [
    dict(zip(("normalize_weights", "detach_weights", "false_negatives"), choice, strict=True))
    for choice in itertools.product((True, False), (True, False), ("mask", "positive", "keep"))
]
SHAPES = [(1, 1), (5, 7), (6, 6), (3, 31), (2, 130), (17, 1100)]


def drawn(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Scores, right scores, a mask, ids of both sides; the second row has no negative."""
    scores, positive = torch.randn(rows, columns).to(dtype), torch.randn(rows).to(dtype)
    valid = torch.rand(rows, columns) < 0.7
    valid[1:2] = False
    return scores, positive, valid, torch.arange(rows) % 5, torch.arange(columns) % 7 - 1


def outcome(scores, positive, backend, upstream=None, **options) -> dict[str, Tensor]:
    """Loss, statistics and gradients, temperature and hardness learnt."""
    number = torch.float64 if scores.dtype == torch.float64 else torch.float32
    learned = {"scores": scores.detach().requires_grad_()}
    if positive is not None:
        learned["positive"] = positive.detach().requires_grad_()
    for name, value in (("temperature", 0.3), ("hardness", 2.0)):
        learned[name] = torch.tensor(value, dtype=number, requires_grad=True)
    loss, stats = score_info_nce(**learned, backend=backend, return_stats=True, **options)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    grads = torch.autograd.grad(loss, list(learned.values()), upstream)
    found = {"loss": loss.detach(), **stats._asdict()}
    return found | {f"d {name}": grad for name, grad in zip(learned, grads, strict=True)}


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)
def test_value_statistics_and_gradients(rows, columns, reduction, own, backend) -> None:
    """Oracle: the specification in fp64."""
    scores, positive, valid, ids, key_ids = drawn(rows, columns)
    upstream = torch.linspace(-1, 2, rows) if reduction == "none" else torch.tensor(1.5)
    for option in OPTIONS:
        given = {
            **option, "valid": valid, "query_ids": ids, "key_ids": key_ids, "reduction": reduction
        }  # fmt: skip
        right = None if own else positive
        want = outcome(scores, right, "reference", upstream, **given)
        found = outcome(scores, right, backend, upstream, **given)
        for name, value in want.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-10, atol=1e-12,
                msg=lambda text, of=(name, option): f"{of}: {text}",
            )  # fmt: skip


@pytest.mark.parametrize("hardness", [0.0, 4.0], ids=["plain", "weighted"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (3, 31)], ids=str)
def test_the_specification_is_that_of_vectors(rows, columns, hardness) -> None:
    """Oracle: reference.weighted_info_nce with one-hot queries, whose scores are any matrix."""
    scores, positive, _, ids, key_ids = drawn(rows, columns)
    for normalize, detach, false_negatives in (tuple(option.values()) for option in OPTIONS):
        options = {
            "temperature": 0.2, "hardness": hardness, "normalize_weights": normalize,
            "detach_weights": detach, "false_negatives": false_negatives, "reduction": "none",
        }  # fmt: skip
        s, p = scores.clone().requires_grad_(), positive.clone().requires_grad_()
        ours = reference_scores.score_info_nce(s, p, query_ids=ids, key_ids=key_ids, **options)
        theirs = reference.weighted_info_nce(
            torch.eye(rows, dtype=s.dtype), torch.diag(p), s.t(), query_ids=ids, bank_ids=key_ids,
            **options,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(ours.sum(), (s, p)),
            torch.autograd.grad(theirs.sum(), (s, p)),
            rtol=1e-10,
            atol=1e-12,
        )


def test_by_hand(backend) -> None:
    """Two queries whose keys are their columns: log(1 + e^((s - s+) / tau))."""
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.6]])
    rows = score_info_nce(scores, temperature=0.5, reduction="none", backend=backend)
    torch.testing.assert_close(rows, torch.tensor([0.18389, 0.43749]), rtol=1e-4, atol=0)
    other = score_info_nce(scores.t(), temperature=0.5, reduction="none", backend=backend)
    torch.testing.assert_close(other, torch.tensor([0.26328, 0.31326]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["unit", "large"])
def test_errors_are_within_the_budget_of_eager(dtype, scale, backend) -> None:
    """The yardstick is the specification in the dtype of the results."""
    scores, positive, valid, ids, key_ids = drawn(33, 517, torch.float32)
    scores, positive = (scores * scale).to(dtype), (positive * scale).to(dtype)
    for option in OPTIONS:
        given = {**option, "valid": valid, "query_ids": ids, "key_ids": key_ids}
        truth = outcome(scores.double(), positive.double(), "reference", **given)
        eager = outcome(scores, positive, "reference", **given)
        found = outcome(scores, positive, backend, **given)
        for name, value in truth.items():
            if name not in ("negatives", "hardest_index"):
                assert_within_budget(found[name], value, eager[name], dtype)
        assert found["d scores"].dtype == dtype
        assert found["loss"].dtype == torch.float32


LAYOUTS = {
    "transposed": lambda s: s.t().contiguous().t(),
    "padded rows": lambda s: torch.nn.functional.pad(s, (0, 5))[:, :-5],
    "every other column": lambda s: s.repeat_interleave(2, 1)[:, ::2],
    "upwards": lambda s: torch.stack([s.flip(0), s.flip(0)])[0].flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(layout, dtype, backend) -> None:
    """The same scores in another layout: the same loss, bit for bit, and the same gradient."""
    scores, positive, valid, ids, key_ids = drawn(13, 70, dtype)
    given = {"query_ids": ids, "key_ids": key_ids, "detach_weights": False}
    for right in (None, positive):
        columns = valid[:1].expand(13, -1)  # which has no stride over rows
        want = outcome(scores, right, backend, valid=columns.clone(), **given)
        strided = LAYOUTS[layout](scores)
        assert torch.equal(strided, scores)
        spread = None if right is None else right.repeat_interleave(3)[::3]
        found = outcome(strided, spread, backend, valid=columns, **given)
        for name, value in want.items():
            assert torch.equal(found[name], value), name


def test_what_does_not_count_may_hold_anything(backend) -> None:
    scores, positive, valid, ids, key_ids = drawn(9, 40, torch.float32)
    given = {"query_ids": ids, "key_ids": key_ids, "valid": valid}
    want = outcome(scores, positive, backend, **given)
    out = ~valid | (key_ids == -1) | (ids[:, None] == key_ids)
    for value in (torch.nan, torch.inf, -torch.inf):
        found = outcome(scores.masked_fill(out, value), positive, backend, **given)
        for name, right in want.items():
            assert torch.equal(found[name], right), (name, value)
        assert (found["d scores"][out] == 0).all()


def test_a_score_of_minus_infinity_is_no_negative(backend) -> None:
    scores, positive, valid, _, _ = drawn(9, 40, torch.float32)
    want = outcome(scores, positive, backend, valid=valid)
    found = outcome(scores.masked_fill(~valid, -torch.inf), positive, backend)
    for name, right in want.items():
        assert torch.equal(found[name], right), name


def test_nan_stays_in_its_row(backend) -> None:
    scores, positive, _, _, _ = drawn(6, 40, torch.float32)
    upstream = torch.ones(6)
    want = outcome(scores, positive, backend, upstream, reduction="none")
    scores[2, 3] = torch.nan
    positive[4] = torch.nan
    found = outcome(scores, positive, backend, upstream, reduction="none")
    rest = torch.tensor([0, 1, 3, 5])
    for name in ("loss", "hardest", "log_negatives", "d scores", "d positive"):
        assert torch.equal(found[name][rest], want[name][rest]), name
    assert found["loss"][[2, 4]].isnan().all()
    assert found["d scores"][[2, 4]].isnan().all()


@pytest.mark.parametrize(
    ("temperature", "scale"), [(0.01, 1e4), (1e-30, 1.0), (1.0, 1e30)], ids=str
)
def test_extreme_scores_and_temperatures(temperature, scale, backend) -> None:
    """The largest score wins; of n equal ones the right one has the share 1 / n."""
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.5, 2.0, 2.0], [1.0, 1.0, 1.0]]) * scale
    rows = score_info_nce(
        scores.requires_grad_(), temperature=temperature, reduction="none", backend=backend
    )
    torch.testing.assert_close(rows, torch.tensor([1.0, 2.0, 3.0]).log())
    (grad,) = torch.autograd.grad(rows.sum(), scores)
    want = torch.tensor([[0.0, 0.0, 0.0], [0.0, -0.5, 0.5], [1 / 3, 1 / 3, -2 / 3]]) / temperature
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_sides(reduction, backend) -> None:
    for rows, columns in ((0, 0), (0, 5), (4, 0)):
        scores = torch.randn(rows, columns, requires_grad=True)
        positive = torch.randn(rows, requires_grad=True)
        loss, stats = score_info_nce(
            scores, positive, reduction=reduction, backend=backend, return_stats=True
        )
        assert loss.shape == ((rows,) if reduction == "none" else ())
        assert (loss == 0).all()
        assert (stats.negatives == 0).all()
        assert (stats.hardest_index == -1).all()
        grads = torch.autograd.grad(loss.sum(), (scores, positive))
        assert grads[0].shape == (rows, columns)
        assert (grads[1] == 0).all()


def test_rows_without_negatives_are_zero_with_zero_gradient(backend) -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    valid = torch.tensor([[False] * 3, [True, False, True]])
    rows = score_info_nce(
        scores, scores[:, 0], valid=valid, hardness=2.0, reduction="none", backend=backend
    )
    assert rows[0] == 0
    rows.sum().backward()
    assert (scores.grad[0] == 0).all()
    assert scores.grad.isfinite().all()


def test_own_ids_serve_a_square_matrix(backend) -> None:
    scores, _, _, ids, _ = drawn(8, 8)
    found = outcome(scores, None, backend, query_ids=ids)
    want = outcome(scores, None, backend, query_ids=ids, key_ids=ids)
    for name, right in want.items():
        assert torch.equal(found[name], right), name


def test_inputs_are_left_as_they_are(backend) -> None:
    inputs = drawn(7, 30)
    before = [tensor.clone() for tensor in inputs]
    scores, positive, valid, ids, key_ids = inputs
    outcome(scores, positive, backend, valid=valid, query_ids=ids, key_ids=key_ids)
    for now, then in zip(inputs, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("where", ["reference", None])
def test_statistics_carry_no_gradient(own, where, backend) -> None:
    scores, positive, *_ = (
        tensor.requires_grad_(tensor.is_floating_point()) for tensor in drawn(4, 6)
    )
    _, stats = score_info_nce(
        scores, None if own else positive, backend=where or backend, return_stats=True
    )
    assert not any(value.requires_grad for value in stats)


def test_a_query_of_unknown_id_is_a_negative_of_all_others(backend) -> None:
    """As ``weighted_info_nce`` has it with in-batch negatives: -1 is nobody's, yet a key."""
    query, key = unit(4, 8), unit(4, 8)
    ids = torch.tensor([-1, 0, 0, -1])
    for rule in ("mask", "positive"):
        options = {"temperature": 0.1, "hardness": 2.0, "false_negatives": rule}
        found, stats = score_info_nce(
            query @ key.T, query_ids=ids, return_stats=True, backend=backend, **options
        )
        want, expected = weighted_info_nce(
            query, key, None, query_ids=ids, in_batch_negatives=True, return_stats=True,
            backend=backend, **options,
        )  # fmt: skip
        assert stats.negatives.tolist() == expected.negatives.tolist() == [3, 2, 2, 3]
        torch.testing.assert_close(found, want)
