"""The weighted InfoNCE: the passes over bank and batch, a launch to finish, one for the gradients.

A launch to start is needed where the host does not know the exponents (a learned temperature or
hardness), for a margin, and while a CUDA graph is captured. A focused mean takes one more to
finish. Two sides share every launch where ``_alike`` lets their passes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends._tickets import tickets
from sede_kernels.backends.triton._host import MAX_PARTS, on_device
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton._scalars import Start
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


class _Queries:
    """The queries of a call and what their passes start from."""

    def __init__(self, problem: Problem, sides: list[Side], start: Start) -> None:
        self.problem, self.sides, self.start = problem, sides, start
        self._joint: Tensor | None = None

    @property
    def joint(self) -> Tensor:
        """(2, B, D) of both sides."""
        if self._joint is None:
            self._joint = torch.stack([side.query for side in self.sides])
        return self._joint

    def match(self, select: str, side: int | None = None) -> Match:
        """What counts for the queries of a side, or of both."""
        limit = self.start.limit if select != "positive" else None
        if limit is not None and side is not None:
            limit = limit[side]
        return Match(self.sides[side or 0].ids, limit, select)


class _Pass:
    """The passes over a segment of the negatives; two sides in one where they are alike."""

    def __init__(self, queries: _Queries, banks: list[Bank], *, in_batch: bool = False) -> None:
        self._queries, self._banks, self._in_batch = queries, banks, in_batch
        problem, sides = queries.problem, queries.sides
        self._joined = len(banks) == 2 and _alike(banks, sides)
        self._empty = not any(bank.rows.shape[0] for bank in banks)
        if self._empty:
            self._problems = []
        elif self._joined:
            self._problems = [problem.product(queries.joint, *(bank.rows for bank in banks))]
        else:
            self._problems = [
                problem.product(side.query, bank.rows)
                for side, bank in zip(sides, banks, strict=True)
            ]

    def run(self, scales: Tensor, select: str, want: Want) -> _Segment:
        """The sums of the segment; no launch where it has no rows."""
        if self._empty:
            return _Segment()
        queries, banks = self._queries, self._banks
        if self._joined:
            found = sums(
                self._problems[0], queries.joint, banks[0], scales, queries.match(select), want,
                other=banks[1], combined=False, in_batch=self._in_batch,
            )  # fmt: skip
            return _segment(found, 3)
        each = [
            sums(
                problem, side.query, bank, scales, queries.match(select, n), want,
                combined=len(banks) > 1, in_batch=self._in_batch,
            )
            for n, (problem, side, bank) in enumerate(
                zip(self._problems, queries.sides, banks, strict=True)
            )
        ]  # fmt: skip
        if len(banks) == 1:
            return _segment(each[0], 2)
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
        problem = Problem.on(side.query.device)
        start = Start.of(problem, sides, scalars, rule)
        _finish(_Queries(problem, sides, start), scalars, rule, out)
    return out


def _finish(queries: _Queries, scalars: Scalars, rule: InfoNCERule, out: InfoNCE) -> None:
    problem, sides, start = queries.problem, queries.sides, queries.start
    want = Want(rule.accumulate, rule.scalar_grad, rule.hardest, rule.unit_length)
    further = Want((0, 1) if rule.query_grad else (), moments=True)
    over_bank = _Pass(queries, [one.bank for one in sides])
    bank = over_bank.run(start.exponents, rule.select, want)
    batch = more = more_of_batch = _Segment()
    if rule.extra_positives:
        more = over_bank.run(start.further, "positive", further)
    if rule.in_batch:
        keys = [Bank(one.positive, ids=one.ids) for one in sides]
        over_batch = _Pass(queries, keys, in_batch=True)
        batch = over_batch.run(start.exponents, rule.select, want._replace(accumulate=()))
        if rule.extra_positives:
            further = further._replace(accumulate=())
            more_of_batch = over_batch.run(start.further, "positive", further)
    B, D = sides[0].query.shape
    share = 1 / len(sides)
    focused = rule.positive_focus != 0 and rule.reduction == "mean"
    scale = share / B if rule.reduction == "mean" else share
    key = "parts" if bank.parts > 1 or batch.parts > 1 else "whole"
    config = problem.config("info_nce", key)
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
        config = problem.config("info_nce", "whole")
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
    found = InfoNCEGradients.empty(grad, side, other, needs, spare)
    if side.query.shape[0] == 0:
        for value in found[4:]:
            value.zero_()
    elif any(needs):
        with on_device(grad):
            to = [value if needed else None for value, needed in zip(found, needs, strict=True)]
            _backward(grad, table, query_grad, _together(side, other), scalars, rule, to)
    return found


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
    problem = Problem.on(grad.device)
    added_query = added_key = None
    if rule.in_batch and any(value is not None for value in to[:4]):
        added_query, added_key = _through_batch(problem, grad, table, sides, scalars, rule)
    config = problem.config("info_nce", "scale")
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
    problem: Problem,
    grad: Tensor,
    table: Tensor,
    sides: list[Side],
    scalars: Scalars,
    rule: InfoNCERule,
) -> SideGradients:
    """What in-batch negatives add: (S, B, D) of queries and of keys."""
    start = Start.of(problem, sides, scalars, rule)
    product = problem.product(sides[0].query, sides[0].positive)
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
                product,
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
