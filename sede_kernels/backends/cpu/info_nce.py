"""The weighted InfoNCE in native code, passes and all: csrc/info_nce.cpp.

The module takes tensors and checks them. What it would have to convert first, it leaves to Python.
"""

from functools import lru_cache

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


@lru_cache(maxsize=256)
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
        rule.margin,
        rule.in_batch,
    )


def info_nce_fits(side: Side) -> bool:
    """Whether a side is dense, on the CPU and of fitting shapes and dtypes, at one look."""
    fits: bool = _native.module().info_nce_fits(side)
    return fits


def _dense(side: Side) -> Side:
    """The side with its vectors as native code reads them."""
    query, positive, rows, row_scale, bank_ids, ids, limit = side
    return Side(
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


@lru_cache(maxsize=256)
def _parts(
    dtype: torch.dtype, rows: int, dim: int, sides: int, rule: InfoNCERule, kept: int
) -> tuple[list[tuple[Tensor, bool]], tuple[bool | float | int, ...]]:
    """``_shapes``, each with whether it holds elements, and the rule as native code takes it."""
    like = _shapes(dtype, rows, dim, sides, rule, kept)
    return [(one, one.numel() > 0) for one in like], _rule(rule)


def _like(
    side: Side, other: Side | None, rule: InfoNCERule
) -> tuple[list[tuple[Tensor, bool]], tuple[bool | float | int, ...]]:
    """``_parts`` of a call."""
    query = side.query
    kept = batch_lse_kept(query, side.positive) if rule.keep and rule.in_batch else 0
    return _parts(query.dtype, *query.shape, 1 if other is None else 2, rule, kept)


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``. One call; the passes take the time."""
    like, _ = _like(side, other, rule)
    out = InfoNCE(*[torch.empty_like(one) for one, _ in like])
    return into(out, side, other, scalars, rule)


def info_nce_at_once(
    side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule
) -> InfoNCE:
    """``info_nce`` past the op: a result without elements is one that other calls have too."""
    make = torch.empty_like
    like, code = _like(side, other, rule)
    out = InfoNCE(*[make(one) if holds else one for one, holds in like])
    if _native.module().info_nce(code, scalars, side, other, out):
        return out
    return into(out, side, other, scalars, rule)


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
    run = _native.module().info_nce_backward
    saved = table, query_grad if query_grad.numel() else None, kept if rule.in_batch else None
    if not run(_rule(rule), scalars, side, other, grad, saved, found):
        dense = _dense(side), None if other is None else _dense(other)
        if not run(_rule(rule), scalars, *dense, grad, saved, found):
            raise _refused("info_nce_backward")
    return found
