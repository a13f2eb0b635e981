"""The weighted InfoNCE as plain arithmetic on the (B,) results of a backend's passes.

``around(passes)`` gives the ``info_nce`` and ``info_nce_backward`` of a backend without kernels of
its own for them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends._info_nce_row import RowSums, reduce, row_losses
from sede_kernels.precision import full_precision
from sede_kernels.types import (
    TABLE,
    BatchSums,
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Match,
    Scalars,
    Side,
    Sums,
    Want,
    result_dtype,
)

Value = float | Tensor


class Passes(NamedTuple):
    """The functions of these names of a backend."""

    bank_lse: Callable[..., Sums]
    bank_lse_pair: Callable[..., Sums]
    batch_lse: Callable[..., BatchSums]
    batch_lse_backward: Callable[..., Any]
    batch_lse_kept: Callable[[Tensor, Tensor], int]
    reduce: Callable[[Tensor, float, str], tuple[Value, Tensor]] = reduce


class Exponents(NamedTuple):
    """The scalars, tensors where they came as such, and the exponents of the passes."""

    inverse: Value  # 1 / tau
    hardness: Value
    scales: Tensor  # [E]

    @classmethod
    def of(cls, scalars: Scalars, rule: InfoNCERule, like: Tensor) -> "Exponents":
        """Numbers are filled in on the device of ``like``, never copied to it."""
        at = scalars.temperature_at
        inverse: Value = 1.0 / (scalars.temperature if at is None else at)
        hardness: Value = scalars.hardness if scalars.hardness_at is None else scalars.hardness_at
        hardness = hardness if rule.weighted else 0.0
        scales = [inverse + hardness, hardness][: rule.exponents]
        return cls(inverse, hardness, _filled(scales, like))

    def extra(self, like: Tensor) -> Tensor:
        """[2], those of further positives."""
        return _filled([self.inverse, 0.0], like)


def _filled(values: list[Value], like: Tensor) -> Tensor:
    dtype = result_dtype(like)
    parts = [
        value.to(dtype) if isinstance(value, Tensor) else like.new_full((), value, dtype=dtype)
        for value in values
    ]
    return torch.stack(parts)


def _match(side: Side, scalars: Scalars, rule: InfoNCERule, positive: Tensor) -> Match:
    limit = side.limit
    if rule.margin:
        limit = positive + (scalars.margin if scalars.margin_at is None else scalars.margin_at)
    return Match(side.ids, limit, rule.select)


def _in_batch(found: BatchSums, counts: Tensor | None) -> Sums:
    """The sums of a batch, which counts where the flag says so."""
    lse, moment, negatives, top, _ = found
    if counts is not None:
        lse, top = (torch.where(counts, value, -torch.inf) for value in (lse, top))
        negatives = torch.where(counts, negatives, 0)
    index = torch.full_like(top, -1, dtype=torch.int64)
    return Sums(lse, moment, lse.new_empty((0,)), negatives, top, index)


class _Row(NamedTuple):
    """What the passes of one side start from."""

    side: Side
    positive_key: Tensor  # (B, D) in the dtype of the results
    positive: Tensor  # (B,) s+
    match: Match


class _Loss(NamedTuple):
    """One side's part of ``InfoNCE``."""

    loss: Tensor
    table: Tensor
    query_grad: Tensor
    negatives: Tensor
    hardest_index: Tensor
    kept: Tensor


def _alike(rows: list[_Row]) -> bool:
    """Whether one pass can take both banks: shapes, dtypes and layouts must agree."""
    if len(rows) == 1:
        return False
    one, other = (row.side for row in rows)
    return (
        one.rows.shape == other.rows.shape
        and one.rows.dtype == other.rows.dtype
        and one.rows.stride() == other.rows.stride()
        and (one.row_scale is None) == (other.row_scale is None)
        and (one.bank_ids is None) == (other.bank_ids is None)
        and one.ids is other.ids
    )


def _bank_sums(
    passes: Passes, rows: list[_Row], scales: Tensor, matches: list[Match], want: Want
) -> list[Sums]:
    """The pass over the bank of each side, both in one where they are alike."""
    first = rows[0].side
    if not first.rows.shape[0] and not rows[-1].side.rows.shape[0]:
        return [Sums.none(row.side.query, scales.shape[0], want) for row in rows]
    if not _alike(rows):
        return [
            passes.bank_lse(row.side.query, row.side.bank, scales, match, want)
            if row.side.rows.shape[0]
            else Sums.none(row.side.query, scales.shape[0], want)
            for row, match in zip(rows, matches, strict=True)
        ]
    limits = [match.limit for match in matches if match.limit is not None]
    match = matches[0]._replace(limit=torch.stack(limits) if limits else None)
    query = torch.stack([row.side.query for row in rows])
    found = passes.bank_lse_pair(query, first.bank, rows[1].side.bank, scales, match, want)
    return [Sums(*(value[n] for value in found)) for n in range(2)]


def _finish(
    passes: Passes,
    row: _Row,
    exponents: Exponents,
    rule: InfoNCERule,
    share: float,
    found: list[Sums],
    extra: list[Sums],
    kept: Tensor,
) -> _Loss:
    """Everything from the sums of the segments of one side; the first is the bank."""
    sums, more = RowSums.of(found), RowSums.of(extra) if extra else None
    losses = row_losses(rule, exponents.inverse, exponents.hardness, row.positive, sums, more)
    weight, loss = passes.reduce(losses.loss, rule.positive_focus, rule.reduction)
    if share != 1:
        weight, loss = weight * share, loss * share
    top, index = found[0].hardest, found[0].hardest_index
    if rule.hardest:
        for part in found[1:]:
            index = torch.where(part.hardest > top, -1, index)
            top = torch.maximum(top, part.hardest)
    zero = torch.zeros_like(losses.loss)

    def weighted(value: Tensor | None) -> Tensor:
        return zero if value is None else value * weight

    inverse = losses.inverse
    by_tau = None if inverse is None else inverse * -(exponents.inverse * exponents.inverse)
    rows = {
        "loss": losses.loss,
        "weight": weight if isinstance(weight, Tensor) else torch.full_like(zero, weight),
        "positive": row.positive,
        "log_negatives": losses.log_negatives,
        "hardest": top if rule.hardest else zero,
        "positive_grad": weighted(losses.positive),
        "temperature_grad": weighted(by_tau),
        "hardness_grad": weighted(losses.hardness),
        "lse_grad": weighted(losses.lse[0]),
        "lse_grad_1": weighted(losses.lse[1]),
    }
    if rule.in_batch:
        rows["lse"], rows["lse_1"] = sums.lse[0], sums.lse[1] if rule.exponents == 2 else zero
    if more is not None and losses.extra is not None:
        rows["extra_lse"] = more.lse[0]
        rows["extra_lse_1"] = more.negatives.to(zero.dtype).log()
        rows["extra_grad"], rows["extra_grad_1"] = (weighted(value) for value in losses.extra)
    grad = zero.new_empty((0,))
    if rule.query_grad:
        grad = rows["positive_grad"].unsqueeze(1) * row.positive_key
        alone = len(found) == 1
        _add(grad, sums, found[0], (rows["lse_grad"], rows["lse_grad_1"]), alone)
        if more is not None:
            _add(grad, more, extra[0], (rows["extra_grad"], rows["extra_grad_1"]), False)
    table = torch.stack([rows.get(name, zero) for name in TABLE])
    return _Loss(loss, table, grad, sums.negatives[: index.shape[0]], index, kept)


def _add(
    grad: Tensor, total: RowSums, part: Sums, factors: tuple[Tensor, Tensor], alone: bool
) -> None:
    """The weighted row sums of a segment, which holds a share of each sum, into the gradient."""
    shares = None if alone or not part.acc.shape[0] else total.share(part)
    for a in range(part.acc.shape[0]):
        factor = factors[a] if shares is None else factors[a] * shares[a]
        grad.addcmul_(part.acc[a], factor.unsqueeze(1))


def _forward(passes: Passes, sides: list[Side], scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    dtype = result_dtype(sides[0].query)
    exponents = Exponents.of(scalars, rule, sides[0].query)
    rows = []
    for side in sides:
        key = side.positive.to(dtype)
        positive = (side.query.to(dtype) * key).sum(dim=1)
        rows.append(_Row(side, key, positive, _match(side, scalars, rule, positive)))
    want = Want(rule.accumulate, rule.scalar_grad, rule.hardest, rule.unit_length)
    further = Want((0, 1) if rule.query_grad else (), moments=True)
    same = [Match(side.ids, None, "positive") for side in sides]
    of_batch, extra_of_batch = (one._replace(accumulate=()) for one in (want, further))
    banks = _bank_sums(passes, rows, exponents.scales, [row.match for row in rows], want)
    extra_banks: list[Sums] = []
    if rule.extra_positives:
        extra_banks = _bank_sums(passes, rows, exponents.extra(sides[0].query), same, further)
    losses = []
    for n, row in enumerate(rows):
        side, found, extra = row.side, [banks[n]], extra_banks[n : n + 1]
        kept = exponents.scales.new_empty((0,))
        if rule.in_batch:
            batch = passes.batch_lse(
                side.query, side.positive, exponents.scales, row.match, of_batch, rule.keep
            )
            kept = batch.kept
            found.append(_in_batch(batch, scalars.batch_at))
        if rule.in_batch and rule.extra_positives:
            batch = passes.batch_lse(
                side.query,
                side.positive,
                exponents.extra(side.query),
                same[n],
                extra_of_batch,
                False,
            )
            extra.append(_in_batch(batch, scalars.batch_at))
        losses.append(_finish(passes, row, exponents, rule, 1 / len(sides), found, extra, kept))
    if len(losses) == 1:
        rest = [part.unsqueeze(0) for part in losses[0][1:]]
    else:
        rest = [torch.stack(parts) for parts in zip(*(loss[1:] for loss in losses), strict=True)]
    loss = losses[0].loss if len(losses) == 1 else losses[0].loss + losses[1].loss
    out = InfoNCE(loss, *rest)
    return out if rule.query_grad else out._replace(query_grad=out.query_grad.flatten())


def _scaled(
    passes: Passes,
    grad: Tensor,
    saved: InfoNCE,
    side: Side,
    scalars: Scalars,
    rule: InfoNCERule,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and positives of one side; ``saved`` is its part."""
    table = saved.table
    row = dict(zip(TABLE, table.unbind(), strict=True))
    for_positive = (grad * row["positive_grad"]).unsqueeze(1) * side.query.to(table.dtype)
    for_query = for_positive  # in a place that nobody asked for
    if rule.query_grad:
        for_query = grad.expand(side.query.shape[0]).unsqueeze(1) * saved.query_grad
    if not rule.in_batch:
        return for_query, for_positive
    exponents = Exponents.of(scalars, rule, side.query)
    at, extra_at = TABLE.index("lse"), TABLE.index("extra_lse")
    match = _match(side, scalars, rule, row["positive"])
    calls = [(exponents.scales, at, match, saved.kept)]
    if rule.extra_positives:
        nothing = saved.kept.new_empty((0,))
        calls.append(
            (exponents.extra(side.query), extra_at, Match(side.ids, None, "positive"), nothing)
        )
    for scales, start, match, kept in calls:
        count = scales.shape[0]
        weight = table[start + 2 : start + 2 + count] * grad
        lse = table[start : start + count]
        if scalars.batch_at is not None:
            # Beside sums that the batch is not in, e^{c s - L} may overflow: of L = inf it is 0.
            weight = torch.where(scalars.batch_at, weight, 0.0)
            lse = torch.where(scalars.batch_at, lse, torch.inf)
        more_query, more_positive = passes.batch_lse_backward(
            weight,
            lse,
            kept,
            side.query,
            side.positive,
            scales,
            torch.ones_like(scales),
            match,
        )
        for_query, for_positive = for_query + more_query, for_positive + more_positive
    return for_query, for_positive


def around(passes: Passes) -> tuple[Callable[..., InfoNCE], Callable[..., InfoNCEGradients]]:
    """``info_nce`` and ``info_nce_backward`` of ``sede_kernels.ops`` around these passes."""

    def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
        """See ``sede_kernels.ops.info_nce``: the passes, and operations on B numbers."""
        sides = [side] if other is None else [side, other]
        with torch.no_grad(), full_precision(side.query.device.type):
            return _forward(passes, sides, scalars, rule)

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
        """See ``sede_kernels.ops.info_nce``."""
        found = list(InfoNCEGradients.empty(grad, side, other, (0,) * len(needs), spare))
        with torch.no_grad(), full_precision(side.query.device.type):
            for n, one in enumerate([side] if other is None else [side, other]):
                if not (needs[2 * n] or needs[2 * n + 1]):
                    continue
                part = InfoNCE(
                    grad,
                    table[n],
                    query_grad[n] if rule.query_grad else query_grad,
                    grad,
                    grad,
                    kept[n] if rule.in_batch else kept,
                )
                query, positive = _scaled(passes, grad, part, one, scalars, rule)
                if needs[2 * n]:
                    found[2 * n] = query.to(one.query.dtype)
                if needs[2 * n + 1]:
                    found[2 * n + 1] = positive.to(one.positive.dtype)
            for at, name in ((4, "temperature_grad"), (5, "hardness_grad")):
                if needs[at]:
                    found[at] = (table[:, TABLE.index(name)] * grad).sum()
        return InfoNCEGradients(*found)

    return info_nce, info_nce_backward
