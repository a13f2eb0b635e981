"""The weighted InfoNCE of given scores in native code: csrc/score_info_nce.cpp."""

from functools import cache

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.score_types import SCORE_TABLE, ScoreGradients, ScoreLoss, Scores
from sede_kernels.types import InfoNCERule, Scalars

_FALSE_NEGATIVES = {"mask": 0, "positive": 1, "keep": 2}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@cache
def _rule(rule: InfoNCERule) -> tuple[bool | int, ...]:
    """RuleTuple of csrc/bind_score_info_nce.cpp."""
    return (
        rule.weighted,
        rule.normalize_weights,
        rule.detach_weights,
        _FALSE_NEGATIVES[rule.false_negatives],
        _REDUCTIONS[rule.reduction],
        rule.scalar_grad,
    )


def _scalar(number: float, at: Tensor | None) -> tuple[float, int, int]:
    """ScalarTuple: a number, or the address of one."""
    if at is None:
        return number, 0, 0
    return 0.0, _native.address("a scalar", at, at.dtype, 1), _native.DTYPE_CODES.get(at.dtype, 0)


def _given(given: Scores, held: list[Tensor], table: int) -> tuple[object, ...]:
    """GivenTuple; ``held`` keeps what is addressed alive."""
    scores, positive, valid, ids, key_ids = given
    rows, columns = scores.shape
    mask: tuple[int, ...] = (0, 0, 0)
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != scores.shape or valid.device.type != "cpu":
            raise ValueError(
                f"cpu backend: valid must be bool {tuple(scores.shape)} on the CPU, "
                f"got {valid.dtype} {tuple(valid.shape)} on {valid.device}."
            )
        mask = (valid.data_ptr(), *valid.stride())

    def array(name: str, tensor: Tensor | None, length: int) -> int:
        if tensor is None:
            return 0
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            held.append(tensor)
        return _native.address(name, tensor, torch.int64, length)

    return (
        _native.matrix(scores),
        [] if positive is None else [_native.matrix(positive.unsqueeze(1))],
        *mask,
        array("query_ids", ids, rows),
        array("key_ids", key_ids, columns),
        table,
    )


def score_info_nce(given: Scores, scalars: Scalars, rule: InfoNCERule) -> ScoreLoss:
    """See ``sede_kernels.ops.score_info_nce``. One read of the scores, O(B) memory."""
    out = ScoreLoss.empty(given.scores, rule.reduction)
    held: list[Tensor] = []
    _native.module().score_info_nce(
        _rule(rule),
        _scalar(scalars.temperature, scalars.temperature_at),
        _scalar(scalars.hardness, scalars.hardness_at),
        _given(given, held, out.table.data_ptr()),
        out.loss.data_ptr(),
        out.negatives.data_ptr(),
        out.hardest_index.data_ptr(),
    )
    return out


def score_info_nce_backward(
    grad: Tensor,
    table: Tensor,
    given: Scores,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    spare: Tensor | None = None,
) -> ScoreGradients:
    """See ``sede_kernels.ops.score_info_nce``. One more read of the scores and one write."""
    rows = given.scores.shape[0]
    if grad.dtype != table.dtype or grad.device.type != "cpu" or grad.shape not in ((), (rows,)):
        raise ValueError(
            f"cpu backend: the gradient of the loss must be () or ({rows},) {table.dtype} on the "
            f"CPU, got {tuple(grad.shape)} {grad.dtype} on {grad.device}."
        )
    found = ScoreGradients.empty(grad, given, needs, spare)
    held: list[Tensor] = []
    _native.module().score_info_nce_backward(
        _rule(rule),
        _scalar(scalars.temperature, scalars.temperature_at),
        _scalar(scalars.hardness, scalars.hardness_at),
        _given(given, held, _native.address("table", table, table.dtype, len(SCORE_TABLE) * rows)),
        grad.data_ptr(),
        grad.stride(0) if grad.ndim else 0,
        [_native.matrix(found.scores)] if needs[0] else [],
        [_native.matrix(found.positive.unsqueeze(1))] if needs[1] else [],
        found.temperature.data_ptr() if needs[2] else 0,
        found.hardness.data_ptr() if needs[3] else 0,
    )
    return found
