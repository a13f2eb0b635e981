"""The weighted InfoNCE of given scores, one launch each way."""

from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.kernels.score_info_nce import _score_bwd_kernel, _score_fwd_kernel
from sede_kernels.score_types import SCORE_TABLE, ScoreGradients, ScoreLoss, Scores
from sede_kernels.types import InfoNCERule, Scalars


def layout(scores: Tensor) -> str:
    """Row key of the launch table: along what the scores lie in memory."""
    return "columns" if scores.stride(0) == 1 and scores.stride(1) != 1 else "rows"


def _config(scores: Tensor) -> launch.Config:
    return Problem.on(scores.device).config("score_info_nce", layout(scores))


def _on_device(scalars: Scalars, rule: InfoNCERule, like: Tensor) -> Scalars:
    """Numbers filled in on the device: one kernel serves numbers and learnable tensors."""

    def filled(value: float, at: Tensor | None) -> Tensor:
        return like.new_full((), value, dtype=torch.float32) if at is None else at

    temperature = filled(scalars.temperature, scalars.temperature_at)
    if not rule.weighted:
        return scalars._replace(temperature_at=temperature)
    hardness = filled(scalars.hardness, scalars.hardness_at)
    return scalars._replace(temperature_at=temperature, hardness_at=hardness)


def _tensors(given: Scores, scalars: Scalars) -> tuple[Tensor | None, ...]:
    """(valid, ids, key_ids, temperature, hardness) as the kernels take them."""
    valid = None if given.valid is None else given.valid.view(torch.uint8)
    ids = None if given.ids is None else given.ids.contiguous()
    key_ids = None if given.key_ids is None else given.key_ids.contiguous()
    return valid, ids, key_ids, scalars.temperature_at, scalars.hardness_at


def _choices(given: Scores, rule: InfoNCERule) -> dict[str, Any]:
    """The constants that both kernels have."""
    same = given.ids is not None and given.key_ids is not None
    return {
        "OWN": given.positive is None,
        "HAS_VALID": given.valid is not None,
        "HAS_IDS": same,
        "HAS_KEYS": given.key_ids is not None,
        "KEEP": rule.false_negatives == "keep",
        "FURTHER": same and rule.extra_positives,
        "WEIGHTED": rule.weighted,
    }


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def score_info_nce(given: Scores, scalars: Scalars, rule: InfoNCERule) -> ScoreLoss:
    """See ``sede_kernels.ops.score_info_nce``. One launch, a fill for each number, a sum."""
    scores, positive = given.scores, given.positive
    scalars = _on_device(scalars, rule, scores)
    rows, columns = scores.shape
    out = ScoreLoss.empty(scores, "none")
    mean = rule.reduction == "mean"
    config = _config(scores)
    if rows:
        with on_device(scores):
            _score_fwd_kernel[(-(-rows // config.rows),)](
                scores,
                positive,
                *_tensors(given, scalars),
                out.table,
                out.negatives,
                out.hardest_index,
                rows,
                columns,
                *scores.stride(),
                0 if positive is None else positive.stride(0),
                *_strides(given.valid),
                1 / rows if mean else 1.0,
                **_choices(given, rule),
                NORMALIZE=rule.normalize_weights,
                DETACH=rule.detach_weights,
                BLOCK_R=config.rows,
                BLOCK_J=config.cols,
                **config.options,
            )
    loss = out.table[SCORE_TABLE.index("loss")]
    if rule.reduction == "none":
        return out._replace(loss=loss.clone())
    return out._replace(loss=loss.mean() if mean and rows else loss.sum())


def score_info_nce_backward(
    grad: Tensor,
    table: Tensor,
    given: Scores,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    spare: Tensor | None = None,
) -> ScoreGradients:
    """See ``sede_kernels.ops.score_info_nce``. One launch, a sum for each learnt number."""
    scores = given.scores
    scalars = _on_device(scalars, rule, scores)
    rows, columns = scores.shape
    found = ScoreGradients.empty(grad, given, needs, spare)
    config = _config(scores)
    if rows and (needs[0] or needs[1]):
        blocks = max(-(-columns // config.cols), 1)
        with on_device(scores):
            _score_bwd_kernel[(-(-rows // config.rows) * blocks,)](
                grad,
                table,
                scores,
                *_tensors(given, scalars),
                found.scores,
                found.positive,
                rows,
                columns,
                blocks,
                grad.stride(0) if grad.ndim else 0,
                *scores.stride(),
                *_strides(given.valid),
                *(found.scores.stride() if needs[0] else (0, 0)),
                **_choices(given, rule),
                SECOND=rule.exponents == 2 and not rule.detach_weights,
                SCORES=bool(needs[0]),
                POSITIVE=bool(needs[1]),
                BLOCK_R=config.rows,
                BLOCK_J=config.cols,
                **config.options,
            )
    for value, name, needed in (
        (found.temperature, "temperature_grad", needs[2]),
        (found.hardness, "hardness_grad", needs[3]),
    ):
        if needed:
            torch.sum(table[SCORE_TABLE.index(name)] * grad, dim=0, out=value)
    return found
