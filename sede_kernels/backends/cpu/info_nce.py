"""The weighted InfoNCE in native code, passes and all: the drivers csrc/info_nce*.cpp.

The module takes tensors and checks them. What it would have to convert first, it leaves to Python.
"""

from functools import lru_cache
from typing import Any

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

#: As in csrc/bind_info_nce.cpp.
RuleTuple = tuple[bool | float | int, ...]


@lru_cache(maxsize=256)
def _rule(rule: InfoNCERule) -> RuleTuple:
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
        rule.margin,
        rule.in_batch,
    )


def info_nce_fits(side: Side) -> bool:
    """Whether a side is dense, on the CPU and of fitting shapes and dtypes, at one look."""
    fits: bool = _native.module().info_nce_fits(side)
    return fits


def _dense(side: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """A ``Side`` with its vectors as native code reads them."""
    query, positive, rows, row_scale, bank_ids, ids, limit = side
    return (
        query,
        positive,
        rows,
        _native.contiguous(row_scale, torch.float32),
        _native.contiguous(bank_ids, torch.int64),
        _native.contiguous(ids, torch.int64),
        _native.contiguous(limit, result_dtype(query)),
    )


def _refused(name: str) -> ValueError:
    return ValueError(
        f"cpu backend: {name} takes (B, D) queries and positives, a (K, D) bank with its scales "
        "and ids, and (B,) ids, all dense and on the CPU; something else came."
    )


@lru_cache(maxsize=256)
def _shapes(
    dtype: torch.dtype, rows: int, dim: int, sides: int, rule: InfoNCERule, kept: int
) -> InfoNCE:
    """Tensors of one element, expanded to the shapes of the results: to be made alike."""
    with torch.inference_mode(False):  # other calls have them too, and save them for a backward
        query = torch.empty(1, 1, dtype=dtype, device="meta").expand(rows, dim)
        like = InfoNCE.empty(query, sides, rule, kept)
        return InfoNCE(
            *(torch.empty((), dtype=part.dtype, device="cpu").expand(part.shape) for part in like)
        )


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``. One call; the passes take the time."""
    query = side.query
    kept = batch_lse_kept(query, side.positive) if rule.keep and rule.in_batch else 0
    sides = 1 if other is None else 2
    like = _shapes(query.dtype, *query.shape, sides, rule, kept)
    return into(InfoNCE(*map(torch.empty_like, like)), side, other, scalars, rule)


@lru_cache(maxsize=256)
def _shared(
    dtype: torch.dtype, rows: int, dim: int, sides: int, rule: InfoNCERule, kept: int
) -> tuple[InfoNCE, RuleTuple]:
    """What calls have in common: ``_shapes``, and the rule as native code takes it."""
    return _shapes(dtype, rows, dim, sides, rule, kept), _rule(rule)


def info_nce_at_once(
    side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule
) -> tuple[InfoNCE, RuleTuple]:
    """``info_nce`` of sides that fit, past the op, and the rule for its backward.

    A result that was not wanted is one that other calls have too. A bank of None has no rows.
    """
    query, make = side.query, torch.empty_like
    room = batch_lse_kept(query, side.positive) if rule.keep and rule.in_batch else 0
    like, code = _shared(query.dtype, *query.shape, 1 if other is None else 2, rule, room)
    loss, table, query_grad, negatives, index, kept = like
    if rule.hardest:
        negatives, index = make(negatives), make(index)
    out = InfoNCE(
        make(loss),
        make(table),
        make(query_grad) if rule.query_grad else query_grad,
        negatives,
        index,
        make(kept) if room else kept,
    )
    if not _native.module().info_nce(code, scalars, side, other, out):
        raise _refused("info_nce")
    return out, code


def into(
    out: InfoNCE, side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule
) -> InfoNCE:
    """``info_nce`` into memory that is there."""
    run = _native.module().info_nce
    if not run(_rule(rule), scalars, side, other, out):
        dense = _dense(side), None if other is None else _dense(other)
        if not run(_rule(rule), scalars, *dense, out):
            raise _refused("info_nce")
    return out


def _backward(
    code: RuleTuple,
    scalars: tuple[float | Tensor | None, ...],
    side: tuple[Tensor | None, ...],
    other: tuple[Tensor | None, ...] | None,
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor | None],
    found: tuple[Tensor | None, ...],
) -> None:
    """Gradients into memory that is there."""
    run = _native.module().info_nce_backward
    if not run(code, scalars, side, other, grad, saved, found):
        dense = _dense(side), None if other is None else _dense(other)
        if not run(code, scalars, *dense, grad, saved, found):
            raise _refused("info_nce_backward")


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
    found = InfoNCEGradients.empty(grad, side, other, needs, spare)
    saved = table, query_grad, kept if rule.in_batch else None
    _backward(_rule(rule), scalars, side, other, grad, saved, found)
    return found


def info_nce_backward_at_once(
    code: RuleTuple,
    grad: Tensor,
    saved: tuple[Tensor, Tensor, Tensor | None],
    side: tuple[Tensor | None, ...],
    other: tuple[Tensor | None, ...] | None,
    scalars: tuple[Any, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients that ``needs`` asks for, from what ``info_nce_at_once`` found.

    ``side`` and ``other`` are as ``Side``, ``scalars`` as ``Scalars``; ``saved`` holds the table,
    the query's gradient and, of in-batch negatives, the similarities.
    """
    learned = side[:2]
    if len(needs) > 2:
        learned = *learned, *((None, None) if other is None else other[:2]), *scalars[3:5]
    dense = torch.contiguous_format
    found = tuple(
        [
            None if one is None or not need else torch.empty_like(one, memory_format=dense)
            for one, need in zip(learned, needs, strict=True)
        ]
    )
    _backward(code, scalars, side, other, grad, saved, found)
    return found
