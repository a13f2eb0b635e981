"""The loss of given scores on the interpreter, against the specification in fp64."""

import pytest
import torch

from sede_kernels import functional
from sede_kernels.testing import assert_within_budget

#: normalize_weights, detach_weights, false_negatives, reduction.
OPTIONS = (
    (True, True, "mask", "mean"),
    (True, False, "positive", "none"),
    (True, False, "keep", "mean"),
    (False, True, "positive", "mean"),
    (False, False, "mask", "none"),
)


def outcome(scores, positive, backend, **options):
    number = torch.float64 if scores.dtype == torch.float64 else torch.float32
    learned = {"scores": scores.detach().requires_grad_()}
    if positive is not None:
        learned["positive"] = positive.detach().requires_grad_()
    for name, value in (("temperature", 0.3), ("hardness", 2.0)):
        learned[name] = torch.tensor(value, dtype=number, requires_grad=True)
    loss, stats = functional.score_info_nce(
        **learned, backend=backend, return_stats=True, **options
    )
    grads = torch.autograd.grad(loss.sum(), list(learned.values()))
    found = {"loss": loss.detach(), **stats._asdict()}
    return found | {f"d {name}": grad for name, grad in zip(learned, grads, strict=True)}


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("transposed", [True, False], ids=["columns", "rows"])
def test_value_statistics_and_gradients(own, transposed):
    rows, columns = 19, 71
    dtype = torch.bfloat16 if own else torch.float32
    scores, positive = torch.randn(rows, columns).to(dtype), torch.randn(rows).to(dtype)
    valid = torch.rand(rows, columns) < 0.7
    valid[1] = False
    masks = {
        "valid": valid,
        "query_ids": torch.arange(rows) % 5,
        "key_ids": torch.arange(columns) % 7 - 1,
    }
    if transposed:
        scores = scores.t().contiguous().t()
    for normalize, detach, false_negatives, reduction in OPTIONS:
        options = {
            **masks, "normalize_weights": normalize, "detach_weights": detach,
            "false_negatives": false_negatives, "reduction": reduction,
        }  # fmt: skip
        right = None if own else positive
        wide = None if own else positive.double()
        truth = outcome(scores.double(), wide, "reference", **options)
        eager = outcome(scores, right, "reference", **options)
        found = outcome(scores, right, "triton", **options)
        for name, value in truth.items():
            if name in ("negatives", "hardest_index"):
                assert torch.equal(found[name], value), (name, options)
            else:
                assert_within_budget(found[name], value, eager[name], dtype)


def test_numbers_masks_and_empty_sides():
    """Numbers in place of tensors, no ids, no columns, no rows, what does not count is NaN."""
    scores = torch.randn(5, 40)
    valid = torch.rand(5, 40) < 0.5
    for given in (scores.masked_fill(~valid, torch.nan), scores.masked_fill(~valid, -torch.inf)):
        found, want = (
            functional.score_info_nce(
                given.to(dtype), torch.ones(5, dtype=dtype), valid=valid, temperature=0.2,
                hardness=hardness, backend=backend,
            )
            for backend, dtype in (("triton", torch.float32), ("reference", torch.float64))
            for hardness in (3.0,)
        )  # fmt: skip
        assert_within_budget(found, want)
    square = torch.randn(8, 8)
    found = functional.score_info_nce(square, temperature=0.2, backend="triton")
    want = functional.score_info_nce(square.double(), temperature=0.2, backend="reference")
    assert_within_budget(found, want)
    for rows, columns in ((0, 4), (3, 0), (0, 0)):
        scores = torch.randn(rows, columns, requires_grad=True)
        positive = torch.randn(rows, requires_grad=True)
        loss = functional.score_info_nce(scores, positive, backend="triton")
        assert loss == 0
        grads = torch.autograd.grad(loss, (scores, positive))
        assert grads[0].shape == (rows, columns)
        assert (grads[1] == 0).all()


def test_extreme_scores_and_nan():
    """Of n equal scores the right one has the share 1 / n; a NaN stays in its row."""
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.5, 2.0, 2.0], [1.0, 1.0, 1.0]])
    for temperature, scale in ((0.01, 1e4), (1e-30, 1.0), (1.0, 1e30)):
        rows = functional.score_info_nce(
            scores * scale, temperature=temperature, reduction="none", backend="triton"
        )
        torch.testing.assert_close(rows, torch.tensor([1.0, 2.0, 3.0]).log())
    scores[1, 2] = torch.nan
    rows, stats = functional.score_info_nce(
        scores, reduction="none", backend="triton", return_stats=True
    )
    assert rows.isnan().tolist() == [False, True, False]
    assert stats.hardest.isnan().tolist() == [False, True, False]


def test_small_losses_keep_their_digits():
    """log(1 + e^x) of x = -30 is e^-30 to the last digits, not 0."""
    scores = torch.tensor([[30.0, 0.0], [0.0, 20.0]])
    rows = functional.score_info_nce(scores, temperature=1.0, reduction="none", backend="triton")
    torch.testing.assert_close(rows, torch.tensor([-30.0, -20.0]).exp(), rtol=1e-6, atol=0)
