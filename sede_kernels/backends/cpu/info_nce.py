"""The weighted InfoNCE in native code, passes and all: csrc/info_nce.cpp."""

from functools import cache

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.batch_lse import batch_lse_kept
from sede_kernels.types import (
    TABLE,
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


@cache
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
    rows, dim = side.query.shape
    size = out.table.element_size()
    steps = (len(TABLE) * rows * size, rows * dim * size, 8 * rows, 8 * rows, kept * size)
    starts = [result.data_ptr() for result in out]
    held: list[Tensor] = []
    tuples = [
        _side(
            one,
            held,
            *(at + n * step if at else 0 for at, step in zip(starts[1:], steps, strict=True)),
        )
        for n, one in enumerate(sides)
    ]
    _native.module().info_nce(_rule(rule), *_scalars(scalars, rule), tuples, starts[0])
    return out


def _grad(grad: Tensor, dtype: torch.dtype, rows: int) -> tuple[int, int]:
    """Address and stride of the incoming gradient, () or (B,), which may be expanded."""
    if grad.dtype != dtype or grad.device.type != "cpu" or grad.shape not in ((), (rows,)):
        raise ValueError(
            f"cpu backend: the gradient of the loss must be () or ({rows},) {dtype} on the CPU, "
            f"got {tuple(grad.shape)} {grad.dtype} on {grad.device}."
        )
    return grad.data_ptr(), grad.stride(0) if grad.ndim else 0


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
    """See ``sede_kernels.ops.info_nce``. One call; with in-batch negatives 4 BBD FLOPs a side.

    ``spare`` stands in the place of what is not wanted; without it each has an empty tensor.
    """
    sides = (side,) if other is None else (side, other)
    dtype, count = result_dtype(side.query), len(sides)
    rows, dim = side.query.shape
    size, held = grad.element_size(), list[Tensor]()
    table_at = _native.address("table", table, dtype, count * len(TABLE) * rows)
    unit_at = kept_at = 0
    if query_grad.numel():
        unit_at = _native.address("query_grad", query_grad, dtype, count * rows * dim)
    room = batch_lse_kept(side.query, side.positive) if kept.numel() else 0
    if room:
        kept_at = _native.address("kept", kept, dtype, count * room)
    tuples = [
        _side(
            one,
            held,
            table_at + n * len(TABLE) * rows * size,
            unit_at + n * rows * dim * size if unit_at else 0,
            0,
            0,
            kept_at + n * room * size if kept_at else 0,
        )
        for n, one in enumerate(sides)
    ]
    last = sides[-1]
    like = (side.query, side.positive, last.query, last.positive)
    found, to = [], []
    for tensor, needed in zip(like, needs, strict=False):
        if needed or spare is None:
            shape = tensor.shape if needed else (0,)
            found.append(torch.empty(shape, dtype=tensor.dtype, device="cpu"))
        else:
            found.append(spare)
        to.append(found[-1].data_ptr() if needed else 0)
    for needed in needs[4:]:
        if needed or spare is None:
            found.append(torch.empty(() if needed else (0,), dtype=dtype, device="cpu"))
        else:
            found.append(spare)
        to.append(found[-1].data_ptr() if needed else 0)
    _native.module().info_nce_backward(
        _rule(rule),
        *_scalars(scalars, rule),
        tuples,
        *_grad(grad, dtype, rows),
        [(to[2 * n], to[2 * n + 1]) for n in range(count)],
        to[4],
        to[5],
    )
    return InfoNCEGradients(*found)
