"""Rows of the weighted InfoNCE: losses and derivatives (B,) from the sums of their negatives.

docs/method.md has the formulas; ``csrc/info_nce_row.h`` is the same arithmetic.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.types import InfoNCERule, Sums

Value = float | Tensor


class RowSums(NamedTuple):
    """The sums over all segments."""

    lse: Tensor  # [E, B]
    moment: Tensor | None  # [E, B], where the segments have moments
    negatives: Tensor  # (B,) int64

    @classmethod
    def of(cls, segments: list[Sums]) -> "RowSums":
        """Of one segment or of several."""
        first, *rest = segments
        moment = first.moment if first.moment.shape[0] else None
        total = cls(first.lse, moment, first.negatives)
        if not rest:
            return total
        for part in rest:
            negatives = total.negatives + part.negatives
            total = cls(torch.logaddexp(total.lse, part.lse), None, negatives)
        if moment is not None:
            parts = [total.share(part) * part.moment for part in segments]
            total = total._replace(moment=torch.stack(parts).sum(dim=0))
        return total

    def share(self, part: Sums) -> Tensor:
        """[E, B]: how much of each sum a segment holds."""
        share = (part.lse - self.lse).exp()
        return share.masked_fill(part.lse == -torch.inf, 0.0)


class RowLosses(NamedTuple):
    """Row losses and their derivatives; None where a derivative is 0 or not wanted."""

    loss: Tensor  # (B,)
    log_negatives: Tensor
    positive: Tensor  # by s+
    inverse: Tensor | None  # by 1 / tau
    hardness: Tensor | None
    lse: tuple[Tensor | None, Tensor | None]  # by each, times what replaces it for the query
    extra: tuple[Tensor, Tensor] | None  # the same of the further positives


class _Debiased(NamedTuple):
    """LN and its derivatives by LN, by the positive's logit and by 1 / tau."""

    value: Tensor
    by_negatives: Value = 1.0
    by_positive: Value = 0.0
    by_inverse: Value = 0.0


def _debiased(
    log_negatives: Tensor, logit: Tensor, count: Tensor, inverse: Value, tau_plus: float
) -> _Debiased:
    if not tau_plus:
        return _Debiased(log_negatives)
    some, unknown = count > 0, log_negatives.isnan()
    log_n = count.clamp(min=1).to(logit.dtype).log()
    floor = log_n - inverse
    below = logit + log_n + math.log(tau_plus) - log_negatives
    rest = -torch.expm1(torch.where(below < 0, below, -1.0))  # the share that stays
    corrected = log_negatives + rest.log() - math.log1p(-tau_plus)
    counts = some & (below < 0) & (corrected >= floor)
    value = torch.where(some, torch.where(counts, corrected, floor), -torch.inf)
    by_negatives = torch.where(counts, 1 / rest, 0.0).masked_fill(unknown, 1.0)
    by_positive = torch.where(counts, -below.exp() / rest, 0.0).masked_fill(unknown, 0.0)
    by_inverse = -(some & ~counts & ~unknown).to(logit.dtype)
    value = torch.where(unknown, log_negatives, value)
    return _Debiased(value, by_negatives, by_positive, by_inverse)


def _log_negatives(rule: InfoNCERule, sums: RowSums) -> Tensor:
    if rule.exponents == 1:
        return sums.lse[0]
    count = sums.negatives.to(sums.lse.dtype)
    found = count.log() + sums.lse[0] - sums.lse[1]
    return found.masked_fill(sums.negatives == 0, -torch.inf)


def row_losses(
    rule: InfoNCERule,
    inverse: Value,
    hardness: Value,
    positive: Tensor,
    sums: RowSums,
    extra: RowSums | None,
) -> RowLosses:
    """Losses and derivatives of the rows with positive similarities (B,)."""
    logit = positive * inverse
    negatives = _debiased(_log_negatives(rule, sums), logit, sums.negatives, inverse, rule.tau_plus)
    further = None if extra is None else _Further.of(extra, inverse, positive, logit)
    own: Value = 1.0 if further is None else further.own
    log_positives = logit if further is None else further.log_positives
    above = negatives.value - log_positives
    # log(1 + e^x): a loss near 0 keeps its digits beside logits of 1 / tau.
    loss = torch.nn.functional.softplus(above, threshold=50)
    pi = above.sigmoid()
    pull = pi * (negatives.by_positive - own) if rule.tau_plus or further is not None else -pi
    by_s = pull * inverse
    outer = pi * negatives.by_negatives if rule.tau_plus else pi
    by_it = by_beta = None
    if rule.scalar_grad and sums.moment is not None:
        attracted = positive if further is None else further.attracted
        by_it = pi * (
            negatives.by_negatives * sums.moment[0]
            + negatives.by_positive * positive
            + negatives.by_inverse
            - attracted
        )
        if rule.weighted:
            two = rule.exponents == 2
            by_beta = outer * (sums.moment[0] - sums.moment[1] if two else sums.moment[0])
    by_extra = None
    if further is not None:
        loss, by_s = loss + further.loss, by_s + inverse * further.by_positive
        by_it = None if by_it is None else by_it + further.by_inverse
        by_extra = (-above).sigmoid() * further.toward, further.mean_row
    first = outer * (inverse if rule.detach_weights else inverse + hardness)
    attached = rule.exponents == 2 and not rule.detach_weights
    second = outer * -hardness if attached else None
    return RowLosses(loss, negatives.value, by_s, by_it, by_beta, (first, second), by_extra)


class _Further(NamedTuple):
    """What further positives add; without one in a row, nothing."""

    own: Tensor  # the share of a row's own positive in the sum over its positives
    log_positives: Tensor
    attracted: Tensor  # the mean similarity of the positives in that sum
    loss: Tensor
    by_positive: Tensor  # over 1 / tau
    by_inverse: Tensor
    toward: Tensor  # derivative by their log-sum, but for 1 - pi
    mean_row: Tensor  # derivative by their mean similarity

    @classmethod
    def of(cls, extra: RowSums, inverse: Value, positive: Tensor, logit: Tensor) -> "_Further":
        assert extra.moment is not None
        number, more = extra.negatives.to(logit.dtype), extra.negatives > 0
        own = (logit - extra.lse[0]).sigmoid()
        log_positives = torch.logaddexp(logit, extra.lse[0])
        mean = (positive + number * extra.moment[1]) / (1 + number)
        attracted = own * positive + (1 - own) * extra.moment[0]
        return cls(
            own,
            log_positives,
            attracted,
            torch.where(more, log_positives - inverse * mean, 0.0),
            own - 1 / (1 + number),
            attracted - mean,
            inverse * (extra.lse[0] - logit).sigmoid(),
            -inverse * number / (1 + number),
        )


def reduce(rows: Tensor, positive_focus: float, reduction: str) -> tuple[Value, Tensor]:
    """Constant weights (B,) of the rows in the loss, a number where all are one, and the loss.

    The mean takes the bases of the focus relative to the largest one, before the power: they may
    be subnormal or 0 in well separated batches, where the share of a row is still well defined.
    """
    size = rows.shape[0]
    if not positive_focus:
        if reduction == "none":
            return 1.0, rows
        return (
            (1.0, rows.sum())
            if reduction == "sum"
            else (1 / max(size, 1), rows.sum() / max(size, 1))
        )
    base = (-torch.expm1(-rows.detach())).clamp(min=0.0)
    if reduction == "mean" and size:
        largest = base.amax()
        base = base / torch.where(largest == 0, 1.0, largest)
    weight = base.pow(positive_focus)
    if reduction == "mean":
        total = weight.sum()
        weight = weight / torch.where(total == 0, 1.0, total)
    loss = weight * rows
    return weight, loss if reduction == "none" else loss.sum()
