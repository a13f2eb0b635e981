"""The weighted InfoNCE: the passes over bank and batch, a launch to finish, one for the gradients.

A launch to start is needed where the host does not know the exponents (a learned temperature or
hardness), for a margin, and while a CUDA graph is captured. A focused mean takes one more to
finish. Two sides share every launch where ``_alike`` lets their passes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._host import MAX_PARTS, on_device
from sede_kernels.backends.triton._scalars import Start, tickets
from sede_kernels.backends.triton.bank_lse import sums
from sede_kernels.backends.triton.batch_lse import batch_gradients
from sede_kernels.backends.triton.kernels.info_nce import _info_nce_finish_kernel
from sede_kernels.backends.triton.kernels.info_nce_focus import _info_nce_focus_kernel
from sede_kernels.backends.triton.kernels.info_nce_scale import _info_nce_scale_kernel
from sede_kernels.types import (
    TABLE,
    Bank,
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Match,
    Scalars,
    Side,
    SideGradients,
    Sums,
    Want,
)

#: Parts that the kernel takes at a time, and rows that its reductions do.
BLOCK_S, BLOCK = 16, 1024


class _Segment(NamedTuple):
    """The sums over a segment of the negatives, of every side."""

    peak: Tensor | None = None
    total: Tensor | None = None
    moment: Tensor | None = None
    acc: Tensor | None = None
    negatives: Tensor | None = None
    hardest_index: Tensor | None = None
    parts: int = 0  # 0: there is none; 1: they are its sums

    @property
    def most_parts(self) -> int:
        """``PARTS`` of the kernel."""
        return MAX_PARTS if self.parts > 1 else self.parts


def _segment(found: Sums, dims: int) -> _Segment:
    """Sums of a query of so many dimensions; those of parts have one more."""
    parts = found.lse.shape[-3] if found.lse.ndim > dims else 1
    return _Segment(
        found.hardest, found.lse, found.moment, found.acc, found.negatives, found.hardest_index,
        parts,
    )  # fmt: skip


def _same_layout(one: Tensor, other: Tensor) -> bool:
    same: bool = (
        one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
    )
    return same


def _alike(banks: list[Bank], sides: list[Side]) -> bool:
    """Whether one pass takes both."""
    one, other = banks
    return (
        _same_layout(one.rows, other.rows)
        and (one.row_scale is None) == (other.row_scale is None)
        and (one.ids is None) == (other.ids is None)
        and sides[0].ids is sides[1].ids
    )


class _Passes:
    """The passes of a call; two sides in one where they are alike."""

    def __init__(self, sides: list[Side], start: Start) -> None:
        self._sides, self._start = sides, start
        self._joint: Tensor | None = None

    def run(
        self, banks: list[Bank], scales: Tensor, select: str, want: Want, *, in_batch: bool = False
    ) -> _Segment:
        """The sums of a segment; no launch where it has no rows."""
        if not any(bank.rows.shape[0] for bank in banks):
            return _Segment()
        limit = self._start.limit if select != "positive" else None
        if len(banks) == 1:
            side = self._sides[0]
            match = Match(side.ids, None if limit is None else limit[0], select)
            found = sums(
                side.query, banks[0], scales, match, want, combined=False, in_batch=in_batch
            )
            return _segment(found, 2)
        if _alike(banks, self._sides):
            if self._joint is None:
                self._joint = torch.stack([side.query for side in self._sides])
            match = Match(self._sides[0].ids, limit, select)
            found = sums(
                self._joint, banks[0], scales, match, want, other=banks[1], combined=False,
                in_batch=in_batch,
            )  # fmt: skip
            return _segment(found, 3)
        each = []
        for n, (side, bank) in enumerate(zip(self._sides, banks, strict=True)):
            match = Match(side.ids, None if limit is None else limit[n], select)
            each.append(sums(side.query, bank, scales, match, want, in_batch=in_batch))
        return _segment(Sums(*map(torch.stack, zip(*each, strict=True))), 3)


def _together(side: Side, other: Side | None) -> list[Side]:
    """The sides of a call; two that differ in layout or in the keys' dtype are copied."""
    if other is None:
        return [side]
    sides = [side, other]
    if _same_layout(side.query, other.query) and _same_layout(side.positive, other.positive):
        return sides
    dtype = torch.promote_types(side.positive.dtype, other.positive.dtype)
    return [
        one._replace(query=one.query.contiguous(), positive=one.positive.to(dtype).contiguous())
        for one in sides
    ]


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``: the launches of its passes, and one."""
    sides = _together(side, other)
    out = InfoNCE.empty(side.query, len(sides), rule, 0)
    if side.query.shape[0] == 0:
        out.loss.zero_()
        return out
    with on_device(side.query):
        start = Start.of(sides, scalars, rule)
        _finish(sides, scalars, rule, start, _Passes(sides, start), out)
    return out


def _finish(
    sides: list[Side],
    scalars: Scalars,
    rule: InfoNCERule,
    start: Start,
    passes: _Passes,
    out: InfoNCE,
) -> None:
    want = Want(rule.accumulate, rule.scalar_grad, rule.hardest, rule.unit_length)
    further = Want((0, 1) if rule.query_grad else (), moments=True)
    exponents = start.exponents
    banks = [one.bank for one in sides]
    bank = passes.run(banks, exponents, rule.select, want)
    batch = more = more_of_batch = _Segment()
    keys = [Bank(one.positive, ids=one.ids) for one in sides]
    if rule.in_batch:
        of_batch = want._replace(accumulate=())
        batch = passes.run(keys, exponents, rule.select, of_batch, in_batch=True)
    if rule.extra_positives:
        more = _whole(passes, banks, start, further)
    if rule.extra_positives and rule.in_batch:
        of_batch = further._replace(accumulate=())
        more_of_batch = _whole(passes, keys, start, of_batch, in_batch=True)
    B, D = sides[0].query.shape
    share = 1 / len(sides)
    focused = rule.positive_focus != 0 and rule.reduction == "mean"
    scale = share / B if rule.reduction == "mean" else share
    key = "parts" if bank.parts > 1 or batch.parts > 1 else "whole"
    config = launch.candidates("info_nce", key, launch.device_class(out.table.device)[0])[0]
    last = sides[-1] if len(sides) == 2 else None
    grid = (-(-B // config.rows), max(1, -(-D // config.cols)) if rule.query_grad else 1)
    tau_plus = rule.tau_plus
    _info_nce_finish_kernel[grid](
        sides[0].query,
        sides[0].positive,
        None if last is None else last.query,
        None if last is None else last.positive,
        *bank[:6],
        *batch[:3],
        batch.negatives,
        *more[1:5],
        *more_of_batch[1:3],
        more_of_batch.negatives,
        start.numbers,
        scalars.batch_at if rule.in_batch else None,
        start.similarity,
        out.loss,
        out.table,
        out.query_grad if rule.query_grad else None,
        out.negatives,
        out.hardest_index,
        tickets(out.table, grid[0]),
        bank.parts,
        batch.parts,
        B,
        D,
        *sides[0].query.stride(),
        *sides[0].positive.stride(),
        1.0 if focused else scale,
        rule.positive_focus,
        math.log(tau_plus) if tau_plus else 0.0,
        math.log1p(-tau_plus),
        SIDES=len(sides),
        E=rule.exponents,
        A=len(rule.accumulate),
        BANK=bank.most_parts,
        BATCH=batch.most_parts,
        FURTHER_BANK=more.most_parts,
        FURTHER_BATCH=more_of_batch.most_parts,
        WEIGHTED=rule.weighted,
        DETACHED=rule.detach_weights,
        DEBIASED=tau_plus != 0,
        MOMENTS=rule.scalar_grad,
        HARDEST=rule.hardest,
        FOCUS=rule.positive_focus != 0 and not focused,
        REDUCTION="" if focused else "none" if rule.reduction == "none" else "sum",
        BLOCK_B=config.rows,
        BLOCK_D=config.cols,
        BLOCK_S=BLOCK_S,
        **config.options,
    )
    if focused:
        config = launch.candidates("info_nce", "whole", launch.device_class(out.table.device)[0])[0]
        grid = (-(-B // config.rows), max(1, -(-D // config.cols)) if rule.query_grad else 1)
        _info_nce_focus_kernel[grid](
            out.table,
            out.query_grad if rule.query_grad else None,
            out.loss,
            B,
            D,
            share,
            rule.positive_focus,
            SIDES=len(sides),
            BLOCK_B=config.rows,
            BLOCK_D=config.cols,
            BLOCK=BLOCK,
            **config.options,
        )


def _whole(
    passes: _Passes, banks: list[Bank], start: Start, want: Want, *, in_batch: bool = False
) -> _Segment:
    """Sums of further positives."""
    return passes.run(banks, start.further, "positive", want, in_batch=in_batch)


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
    """See ``sede_kernels.ops.info_nce``. One launch, and with in-batch negatives two more."""
    last = side if other is None else other
    like = (side.query, side.positive, last.query, last.positive)
    to: list[Tensor | None] = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=grad.device) if needed else None
        for tensor, needed in zip(like, needs, strict=False)
    ]
    to += [grad.new_empty(()) if needed else None for needed in needs[4:]]
    empty = [grad.new_empty((0,)) if spare is None else spare for value in to if value is None]
    found = [empty.pop() if value is None else value for value in to]
    if side.query.shape[0] == 0:
        for value in to[4:]:
            if value is not None:
                value.zero_()
    elif any(needs):
        with on_device(grad):
            _backward(grad, table, query_grad, _together(side, other), scalars, rule, to)
    return InfoNCEGradients(*found)


def _backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor,
    sides: list[Side],
    scalars: Scalars,
    rule: InfoNCERule,
    to: list[Tensor | None],
) -> None:
    B, D = sides[0].query.shape
    added_query = added_key = None
    if rule.in_batch and any(value is not None for value in to[:4]):
        added_query, added_key = _through_batch(grad, table, sides, scalars, rule)
    config = launch.candidates("info_nce", "scale", launch.device_class(grad.device)[0])[0]
    last = sides[-1] if len(sides) == 2 else None
    scalar = to[4] is not None or to[5] is not None
    _info_nce_scale_kernel[-(-B // config.rows) + scalar, max(1, -(-D // config.cols))](
        grad,
        table,
        query_grad,
        added_query,
        added_key,
        sides[0].query,
        None if last is None else last.query,
        *to,
        B,
        D,
        grad.stride(0) if grad.ndim else 0,
        *sides[0].query.stride(),
        SIDES=len(sides),
        BLOCK_B=config.rows,
        BLOCK_D=config.cols,
        BLOCK=BLOCK,
        **config.options,
    )


def _through_batch(
    grad: Tensor, table: Tensor, sides: list[Side], scalars: Scalars, rule: InfoNCERule
) -> SideGradients:
    """What in-batch negatives add: (S, B, D) of queries and of keys."""
    start = Start.of(sides, scalars, rule)
    names = [("lse", start.exponents, rule.select)]
    if rule.extra_positives:
        names.append(("extra_lse", start.further, "positive"))
    total: SideGradients | None = None
    for name, scales, select in names:
        at = TABLE.index(name)
        limit = start.limit if select != "positive" else None

        def gradients(
            of: list[Side], first: int, at: int = at, scales: Tensor = scales,
            select: str = select, limit: Tensor | None = limit,
        ) -> SideGradients:  # fmt: skip
            rows = table[first:].flatten(0, 1)  # from here on, of all sides
            most = None if limit is None else limit[first : first + len(of)]
            return batch_gradients(
                [(one.query, one.positive) for one in of],
                rows[at + 2 :],
                rows[at:],
                scales,
                Match(of[0].ids, most, select),
                upstream=grad,
                flag=scalars.batch_at,
                side_step=table.stride(0),
            )

        if sides[0].ids is sides[-1].ids:
            part = gradients(sides, 0)
        else:
            each = [gradients([one], n) for n, one in enumerate(sides)]
            part = SideGradients(*map(torch.stack, zip(*each, strict=True)))
        total = (
            part
            if total is None
            else SideGradients(*(a + b for a, b in zip(total, part, strict=True)))
        )
    assert total is not None
    return total
