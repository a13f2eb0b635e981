"""The weighted InfoNCE of given scores, one launch each way."""

from functools import cache

import torch
from torch import Tensor

from sede_kernels.backends._tickets import tickets
from sede_kernels.backends.cuda import _native
from sede_kernels.score_types import ScoreGradients, ScoreLoss, Scores
from sede_kernels.types import InfoNCERule, Scalars


@cache
def _rule(rule: InfoNCERule) -> tuple[bool, ...]:
    """RuleTuple of csrc/bind_cuda_score_info_nce.cpp."""
    return (
        rule.false_negatives == "keep",
        rule.extra_positives,
        rule.weighted,
        rule.normalize_weights,
        rule.detach_weights,
        rule.reduction == "mean",
        rule.reduction != "none",
    )


def _arguments(
    call: _native.Call, given: Scores, scalars: Scalars, rule: InfoNCERule
) -> tuple[object, ...]:
    """What both directions are called with."""
    scores, positive, valid, ids, key_ids = given
    rows, columns = scores.shape
    none = (0, 0, 0, 0, 0, 0)
    place = (0, 0, 0) if valid is None else (call.result(valid), *valid.stride())
    return (
        (
            call.matrix(scores),
            none if positive is None else call.matrix(positive.unsqueeze(1)),
            *place,
            call.array("ids", ids, torch.int64, rows),
            call.array("key_ids", key_ids, torch.int64, columns),
        ),
        call.number(scalars.temperature, scalars.temperature_at),
        call.number(scalars.hardness, scalars.hardness_at),
        _rule(rule),
    )


def score_info_nce(given: Scores, scalars: Scalars, rule: InfoNCERule) -> ScoreLoss:
    """See ``sede_kernels.ops.score_info_nce``. One launch, two reads of the scores."""
    rows = given.scores.shape[0]
    out = ScoreLoss.empty(given.scores, rule.reduction)
    if rows == 0:
        out.loss.zero_()
        return out
    call = _native.Call(given.scores.device)
    call.launch(
        _native.module().score_info_nce,
        *_arguments(call, given, scalars, rule),
        (*(call.result(value) for value in out), call.result(tickets(given.scores, rows))),
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
    """See ``sede_kernels.ops.score_info_nce``. One launch."""
    found = ScoreGradients.empty(grad, given, needs, spare)
    if given.scores.shape[0] == 0:
        for value in found[2:]:
            value.zero_()
    elif any(needs):
        call = _native.Call(given.scores.device)
        call.launch(
            _native.module().score_info_nce_backward,
            *_arguments(call, given, scalars, rule),
            (call.result(grad), call.result(table)),
            grad.stride(0) if grad.ndim else 0,
            tuple(call.result(value) for value in found),
            *(found.scores.stride() if needs[0] else (0, 0)),
        )
    return found
