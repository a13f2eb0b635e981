"""The weighted InfoNCE: the passes over bank and batch, a launch to finish, one for the gradients.

In-batch negatives take a pass more, and in the backward two launches a chunk of keys.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sede_kernels.backends._tickets import tickets
from sede_kernels.backends.cuda import _native
from sede_kernels.types import InfoNCE, InfoNCEGradients, InfoNCERule, Scalars, Side


@lru_cache(maxsize=256)
def _rule(rule: InfoNCERule) -> tuple[object, ...]:
    """RuleTuple of csrc/bind_cuda_info_nce.cpp."""
    return (
        rule.weighted,
        rule.detach_weights,
        rule.extra_positives,
        rule.exponents,
        len(rule.accumulate),
        _native.SELECT_CODES[rule.select],
        rule.margin,
        rule.in_batch,
        rule.reduction == "mean",
        rule.reduction != "none",
        rule.hardest,
        rule.scalar_grad,
        rule.unit_length,
        rule.positive_focus,
        rule.tau_plus,
    )


def _side(call: _native.Call, side: Side) -> tuple[object, ...]:
    """LossSideTuple."""
    rows, size = side.query.shape[0], side.rows.shape[0]
    return (
        call.matrix(side.query),
        call.matrix(side.positive),
        call.matrix(side.rows),
        call.array("row_scale", side.row_scale, torch.float32, size) if size else 0,
        call.array("bank_ids", side.bank_ids, torch.int64, size) if size else 0,
        call.array("ids", side.ids, torch.int64, rows),
        call.array("limit", side.limit, torch.float32, rows),
    )


def _arguments(
    call: _native.Call, side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule
) -> tuple[object, ...]:
    """What both directions of a loss are called with."""
    return (
        [_side(call, one) for one in ((side,) if other is None else (side, other))],
        (
            call.number(scalars.temperature, scalars.temperature_at),
            call.number(scalars.hardness, scalars.hardness_at),
            call.number(scalars.margin, scalars.margin_at),
        ),
        call.array("batch", scalars.batch_at, torch.bool, 1),
        _rule(rule),
    )


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``: the launches of its passes, and one."""
    query = side.query
    out = InfoNCE.empty(query, 1 if other is None else 2, rule, 0)
    if query.shape[0] == 0:
        out.loss.zero_()
        return out
    call = _native.Call(query.device)
    slots = query.shape[0] * (1 if other is None else 2)
    call.run(
        _native.module().info_nce,
        *_arguments(call, side, other, scalars, rule),
        (*(call.result(value) for value in out[:5]), call.result(tickets(query, slots))),
        _native.tf32(),
    )
    return out


def info_nce_backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor,
    kept: Tensor,
    side: Side,
    other: Side | None,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    spare: Tensor | None = None,
) -> InfoNCEGradients:
    """See ``sede_kernels.ops.info_nce``. One launch, and those of in-batch negatives."""
    found = InfoNCEGradients.empty(grad, side, other, needs, spare)
    if side.query.shape[0] == 0:
        for value in found[4:]:
            value.zero_()
    elif any(needs):
        call = _native.Call(grad.device)
        call.run(
            _native.module().info_nce_backward,
            *_arguments(call, side, other, scalars, rule),
            (call.result(grad), call.result(table), call.result(query_grad)),
            grad.stride(0) if grad.ndim else 0,
            tuple(call.result(value) for value in found),
        )
    return found
