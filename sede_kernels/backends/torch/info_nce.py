"""The weighted InfoNCE as plain arithmetic on (B,) results of its passes; docs/method.md."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends.torch._info_nce_row import RowSums, reduce, row_losses
from sede_kernels.backends.torch.bank_lse import bank_lse
from sede_kernels.backends.torch.batch_lse import batch_lse, batch_lse_backward
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


class _Values(NamedTuple):
    """The scalars, tensors where they came as such, and the exponents of the passes."""

    inverse: Value  # 1 / tau
    hardness: Value
    scales: Tensor  # [E]
    extra_scales: Tensor  # [2], of further positives


def _values(scalars: Scalars, rule: InfoNCERule, like: Tensor) -> _Values:
    at = scalars.temperature_at
    inverse: Value = 1.0 / (scalars.temperature if at is None else at)
    hardness: Value = scalars.hardness if scalars.hardness_at is None else scalars.hardness_at
    hardness = hardness if rule.weighted else 0.0
    scales = [inverse + hardness, hardness][: rule.exponents]
    return _Values(inverse, hardness, _filled(scales, like), _filled([inverse, 0.0], like))


def _filled(values: list[Value], like: Tensor) -> Tensor:
    """[E] beside ``like``; numbers are filled in on its device, never copied to it."""
    dtype = result_dtype(like)
    parts = [
        value.to(dtype) if isinstance(value, Tensor) else like.new_full((), value, dtype=dtype)
        for value in values
    ]
    return torch.stack(parts)


def _limit(scalars: Scalars, rule: InfoNCERule, positive: Tensor) -> Tensor | None:
    if not rule.margin:
        return None
    return positive + (scalars.margin if scalars.margin_at is None else scalars.margin_at)


def _masked(found: BatchSums, counts: Tensor | None) -> Sums:
    """The sums of a batch that counts where the flag says so."""
    lse, moment, negatives, top, _ = found
    if counts is not None:
        lse, top = (torch.where(counts, value, -torch.inf) for value in (lse, top))
        negatives = torch.where(counts, negatives, 0)
    index = torch.full_like(top, -1, dtype=torch.int64)
    return Sums(lse, moment, lse.new_empty((0,)), negatives, top, index)


def _forward(
    side: Side, scalars: Scalars, rule: InfoNCERule, share: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, table, query_grad, negatives, hardest_index) of one side."""
    query = side.query
    dtype = result_dtype(query)
    q, p = query.to(dtype), side.positive.to(dtype)
    values = _values(scalars, rule, query)
    positive = (q * p).sum(dim=1)
    match = Match(side.ids, _limit(scalars, rule, positive), rule.select)
    want = Want(rule.accumulate, rule.scalar_grad, rule.hardest)
    further = Want((0, 1) if rule.query_grad else (), moments=True)
    found, extra = [Sums.none(query, rule.exponents, want)], [Sums.none(query, 2, further)]
    same = Match(side.ids, None, "positive")
    if side.rows.shape[0]:
        found = [bank_lse(query, side.bank, values.scales, match, want)]
        if rule.extra_positives:
            extra = [bank_lse(query, side.bank, values.extra_scales, same, further)]
    if rule.in_batch:
        batch = batch_lse(query, side.positive, values.scales, match, want, False)
        found.append(_masked(batch, scalars.batch_at))
        if rule.extra_positives:
            batch = batch_lse(query, side.positive, values.extra_scales, same, further, False)
            extra.append(_masked(batch, scalars.batch_at))
    sums, more = RowSums.of(found), RowSums.of(extra)
    row = row_losses(rule, values.inverse, values.hardness, positive, sums, more)
    weight, loss = reduce(rule, row.loss)
    weight, loss = weight * share, loss * share
    inverse_to_temperature = -(values.inverse * values.inverse)
    top, index = found[0].hardest, found[0].hardest_index
    if rule.hardest and rule.in_batch:
        index = torch.where(found[1].hardest > top, -1, index)
        top = torch.maximum(top, found[1].hardest)
    lse_grad, extra_grad = weight * row.lse, weight * row.extra
    table = torch.cat(
        [
            torch.stack(
                [
                    row.loss,
                    weight,
                    positive,
                    row.log_negatives,
                    top if rule.hardest else torch.full_like(positive, -torch.inf),
                    weight * row.positive,
                    inverse_to_temperature * weight * row.inverse,
                    weight * row.hardness,
                ]
            ),
            _pair(sums.lse),
            _pair(lse_grad),
            more.lse[:1],
            more.negatives.to(dtype).log().unsqueeze(0),
            extra_grad,
        ]
    )
    grad = query.new_empty((0,), dtype=dtype)
    if rule.query_grad:
        grad = (weight * row.positive).unsqueeze(1) * p
        for total, segments, coefficients in (
            (sums, found[:1], lse_grad),
            (more, extra[:1], extra_grad),
        ):
            for part in segments:
                shares = total.share(part)
                for a in range(part.acc.shape[0]):
                    factor = coefficients[a] * shares[a]
                    grad.addcmul_(part.acc[a], factor.unsqueeze(1))
    return loss, table, grad, sums.negatives[: index.shape[0]], index


def _pair(values: Tensor) -> Tensor:
    """[1 or 2, B] as [2, B]."""
    return values if values.shape[0] == 2 else torch.cat([values, torch.zeros_like(values)])


def info_nce(side: Side, other: Side | None, scalars: Scalars, rule: InfoNCERule) -> InfoNCE:
    """See ``sede_kernels.ops.info_nce``. The passes, and some sixty operations on B numbers."""
    sides = (side,) if other is None else (side, other)
    with torch.no_grad(), torch.autocast(side.query.device.type, enabled=False):
        results = [_forward(one, scalars, rule, 1 / len(sides)) for one in sides]
        losses, *kept = zip(*results, strict=True)
        table, query_grad, negatives, index = (torch.stack(parts) for parts in kept)
        loss = losses[0] if other is None else losses[0] + losses[1]
    query_grad = query_grad if rule.query_grad else query_grad.view(0)
    return InfoNCE(loss, table, query_grad, negatives, index, table.new_empty((len(sides), 0)))


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
    """See ``sede_kernels.ops.info_nce``."""
    sides = (side,) if other is None else (side, other)
    nothing = grad.new_empty((0,))
    found = [nothing] * 6
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        for at, one in enumerate(sides):
            for_query, for_positive = needs[2 * at : 2 * at + 2]
            if for_query or for_positive:
                query, positive = _backward(
                    grad, table[at], query_grad[at] if for_query else None, one, scalars, rule
                )
                found[2 * at] = query.to(one.query.dtype) if for_query else nothing
                found[2 * at + 1] = positive.to(one.positive.dtype) if for_positive else nothing
        for at, name in ((4, "temperature_grad"), (5, "hardness_grad")):
            if needs[at]:
                found[at] = (table[:, TABLE.index(name)] * grad).sum()
    return InfoNCEGradients(*found)


def _backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor | None,
    side: Side,
    scalars: Scalars,
    rule: InfoNCERule,
) -> tuple[Tensor, Tensor]:
    row = dict(zip(TABLE, table.unbind(), strict=True))
    q = side.query.to(table.dtype)
    for_positive = (grad * row["positive_grad"]).unsqueeze(1) * q
    for_query = q if query_grad is None else grad.expand(q.shape[0]).unsqueeze(1) * query_grad
    if not rule.in_batch:
        return for_query, for_positive
    values = _values(scalars, rule, side.query)
    ones = torch.ones_like(values.extra_scales)
    passes = [(values.scales, "lse", Match(side.ids, _limit(scalars, rule, row["positive"]), rule.select))]
    if rule.extra_positives:
        passes.append((values.extra_scales, "extra", Match(side.ids, None, "positive")))
    for scales, name, match in passes:
        start = TABLE.index("lse" if name == "lse" else "extra_lse")
        lse, weight = table[start : start + 2], table[start + 2 : start + 4] * grad
        if scalars.batch_at is not None:
            weight = torch.where(scalars.batch_at, weight, 0.0)
        count = scales.shape[0]
        more_query, more_positive = batch_lse_backward(
            weight[:count], lse[:count], weight.new_empty((0,)), side.query, side.positive, scales,
            ones[:count], match,
        )  # fmt: skip
        for_query, for_positive = for_query + more_query, for_positive + more_positive
    return for_query, for_positive
