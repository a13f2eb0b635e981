"""The weighted InfoNCE in native code, passes and all: csrc/info_nce.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.batch_lse import batch_lse_kept
from sede_kernels.types import (
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Scalars,
    Side,
    result_dtype,
)

_FALSE_NEGATIVES = {"mask": 0, "positive": 1, "keep": 2}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LONG, _SINGLE = torch.int64, torch.float32


def _rule(rule: InfoNCERule) -> tuple[bool | float | int, ...]:
    """RuleTuple of csrc/bind_info_nce.cpp."""
    return (
        rule.weighted,
        rule.normalize_weights,
        rule.detach_weights,
        rule.positive_focus,
        rule.tau_plus,
        _FALSE_NEGATIVES[rule.false_negatives],
        _REDUCTIONS[rule.reduction],
        rule.scalar_grad,
        rule.hardest,
    )


def _scalar(number: float, at: Tensor | None) -> tuple[float, int, int]:
    """ScalarTuple: a number, or the address of one."""
    if at is None:
        return number, 0, 0
    return 0.0, _native.address("a scalar", at, at.dtype, 1), _native.DTYPE_CODES.get(at.dtype, 0)


def _scalars(scalars: Scalars, rule: InfoNCERule) -> tuple[object, ...]:
    number, hardness, margin, number_at, hardness_at, margin_at, batch_at = scalars
    batch = (float(rule.in_batch), 0, 0)
    if rule.in_batch and batch_at is not None:
        batch = (0.0, _native.address("in_batch_negatives", batch_at, torch.bool, 1), 0)
    return (
        _scalar(number, number_at),
        _scalar(hardness, hardness_at),
        [_scalar(margin, margin_at)] if rule.margin else [],
        batch,
    )


def _side(
    side: Side, held: list[Tensor], table: int, grad: int, negatives: int, index: int, kept: int
) -> tuple[object, ...]:
    """SideTuple; ``held`` keeps what is addressed alive."""
    query, positive, rows, row_scale, bank_ids, ids = side
    count, size = query.shape[0], rows.shape[0]

    def array(name: str, tensor: Tensor | None, dtype: torch.dtype, length: int) -> int:
        if tensor is None:
            return 0
        if tensor.dtype != dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            held.append(tensor)
        return _native.address(name, tensor, dtype, length)

    return (
        _native.matrix(query),
        _native.matrix(positive),
        _native.matrix(rows),
        array("row_scale", row_scale, _SINGLE, size),
        array("bank_ids", bank_ids, _LONG, size),
        array("query_ids", ids, _LONG, count),
        table,
        grad,
        negatives,
        index,
        kept,
    )


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``. One call; the passes take the time."""
    kept = batch_lse_kept(side.query, side.positive) if rule.keep and rule.in_batch else 0
    sides = (side,) if other is None else (side, other)
    out = InfoNCE.empty(side.query, len(sides), rule, kept)
    held: list[Tensor] = []
    at = [result.data_ptr() for result in out]
    steps = [result[0].numel() * result.element_size() if result.numel() else 0 for result in out[1:]]
    _native.module().info_nce(
        _rule(rule),
        *_scalars(scalars, rule),
        [
            _side(one, held, *(a + n * step if a else 0 for a, step in zip(at[1:], steps, strict=True)))
            for n, one in enumerate(sides)
        ],
        at[0],
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
) -> InfoNCEGradients:
    """See ``sede_kernels.ops.info_nce``. One call; with in-batch negatives 4 BBD FLOPs a side."""
    sides = (side,) if other is None else (side, other)
    dtype = result_dtype(side.query)
    rows, dim = side.query.shape
    held: list[Tensor] = []
    table_at = _native.address("table", table, dtype, len(sides) * table.shape[1] * rows)
    if needs[0] or needs[2]:
        _native.address("query_grad", query_grad, dtype, len(sides) * rows * dim)
    grad_step = 0
    if grad.ndim:
        grad_step = grad.stride(0)
    if kept.numel():
        size = len(sides) * batch_lse_kept(side.query, side.positive)
        _native.address("kept", kept, dtype, size)
    size = grad.element_size()
    grad_at, kept_at = query_grad.data_ptr(), kept.data_ptr()
    tuples = [
        _side(
            one,
            held,
            table_at + n * table.shape[1] * rows * size,
            grad_at + n * rows * dim * size if query_grad.numel() else 0,
            0,
            0,
            kept_at + n * kept.shape[1] * size if kept.numel() else 0,
        )
        for n, one in enumerate(sides)
    ]
    nothing = grad.new_empty((0,))
    last = sides[-1]
    like = (side.query, side.positive, last.query, last.positive)
    found = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") if needed else nothing
        for tensor, needed in zip(like, needs, strict=False)
    ]
    found += [_native.empty(dtype=dtype) if needed else nothing for needed in needs[4:]]
    to = [result.data_ptr() for result in found]
    _native.module().info_nce_backward(
        _rule(rule),
        *_scalars(scalars, rule),
        tuples,
        _native.address("grad", grad, dtype, grad.numel()) if grad_step != 0 or True else 0,
        grad_step,
        [(to[2 * n], to[2 * n + 1]) for n in range(len(sides))],
        to[4],
        to[5],
    )
    return InfoNCEGradients(*found)
