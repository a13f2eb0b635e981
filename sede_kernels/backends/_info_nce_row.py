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
    moment: Tensor  # [E, B], zeros where no segment has moments
    negatives: Tensor  # (B,) int64

    @classmethod
    def of(cls, segments: list[Sums]) -> "RowSums":
        """Of one segment or of several."""
        lse = segments[0].lse
        negatives = segments[0].negatives
        for part in segments[1:]:
            lse, negatives = torch.logaddexp(lse, part.lse), negatives + part.negatives
        total = cls(lse, torch.zeros_like(lse), negatives)
        moment = total.moment
        for part in segments:
            if part.moment.shape[0]:
                moment = moment + total.share(part) * part.moment
        return total._replace(moment=moment)

    def share(self, part: Sums) -> Tensor:
        """[E, B]: how much of each sum a segment holds."""
        share = (part.lse - self.lse).exp()
        return torch.where(part.lse == -torch.inf, 0.0, share)


class RowLosses(NamedTuple):
    """Row losses and their derivatives."""

    loss: Tensor  # (B,)
    log_negatives: Tensor
    positive: Tensor  # by s+
    inverse: Tensor  # by 1 / tau
    hardness: Tensor
    lse: Tensor  # [E, B] by each log-sum-exp, times what replaces its exponent for the query
    extra: Tensor  # [2, B] the same of the further positives


def _debiased(
    log_negatives: Tensor, logit: Tensor, count: Tensor, inverse: Value, tau_plus: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LN and its derivatives by LN, by the positive's logit and by 1 / tau."""
    one, zero = torch.ones_like(logit), torch.zeros_like(logit)
    if not tau_plus:
        return log_negatives, one, zero, zero
    some, unknown = count > 0, log_negatives.isnan()
    log_n = count.clamp(min=1).to(logit.dtype).log()
    floor = log_n - inverse
    below = logit + log_n + math.log(tau_plus) - log_negatives
    rest = -torch.expm1(torch.where(below < 0, below, -1.0))  # the share that stays
    corrected = log_negatives + rest.log() - math.log1p(-tau_plus)
    counts = some & (below < 0) & (corrected >= floor)
    value = torch.where(some, torch.where(counts, corrected, floor), -torch.inf)
    by_negatives = torch.where(counts, 1 / rest, zero)
    by_positive = torch.where(counts, -below.exp() / rest, zero)
    by_inverse = torch.where(some & ~counts & ~unknown, -one, zero)
    return (
        torch.where(unknown, log_negatives, value),
        torch.where(unknown, one, by_negatives),
        torch.where(unknown, zero, by_positive),
        by_inverse,
    )


def row_losses(
    rule: InfoNCERule,
    inverse: Value,
    hardness: Value,
    positive: Tensor,
    sums: RowSums,
    extra: RowSums,
) -> RowLosses:
    """Losses and derivatives of the rows with positive similarities (B,)."""
    logit = inverse * positive
    none = sums.negatives == 0
    log_negatives, moment = sums.lse[0], sums.moment[0]
    if rule.exponents == 2:
        log_count = sums.negatives.clamp(min=1).to(logit.dtype).log()
        log_negatives = log_count + sums.lse[0] - sums.lse[1].masked_fill(none, 0.0)
        log_negatives = log_negatives.masked_fill(none, -torch.inf)
        moment = sums.moment[0] - sums.moment[1]
    log_negatives, by_negatives, by_positive, by_inverse = _debiased(
        log_negatives, logit, sums.negatives, inverse, rule.tau_plus
    )
    log_positives = torch.logaddexp(logit, extra.lse[0])
    above = log_negatives - log_positives
    pi = above.sigmoid()
    own = (logit - extra.lse[0]).sigmoid()  # the share of its own positive
    number = extra.negatives.to(logit.dtype)
    mean = (positive + number * extra.moment[1]) / (1 + number)
    attracted = own * positive + (1 - own) * extra.moment[0]
    outer = pi * by_negatives
    zero = torch.zeros_like(logit)
    loss = torch.logaddexp(zero, above)
    by_s = inverse * (pi * (by_positive - own))
    by_it = pi * (by_negatives * sums.moment[0] + by_positive * positive + by_inverse - attracted)
    pulls = torch.stack([zero, zero])
    if rule.extra_positives:
        more = number > 0
        loss = loss + torch.where(more, log_positives - inverse * mean, zero)
        by_s = by_s + inverse * (own - 1 / (1 + number))
        by_it = by_it + (attracted - mean)
        toward = (-above).sigmoid() * (extra.lse[0] - logit).sigmoid()
        pulls = torch.stack([inverse * toward, -inverse * number / (1 + number)])
    by_lse = [inverse * outer if rule.detach_weights else (inverse + hardness) * outer]
    if rule.exponents == 2:
        by_lse.append(zero if rule.detach_weights else -hardness * outer)
    return RowLosses(
        loss,
        log_negatives,
        by_s,
        by_it,
        outer * moment if rule.weighted else zero,
        torch.stack(by_lse),
        pulls,
    )


def reduce(rows: Tensor, positive_focus: float, reduction: str) -> tuple[Tensor, Tensor]:
    """Constant weights (B,) of the rows in the loss, and the loss.

    The mean takes the bases of the focus relative to the largest one, before the power: they may
    be subnormal or 0 in well separated batches, where the share of a row is still well defined.
    """
    size = rows.shape[0]
    if positive_focus:
        base = (-torch.expm1(-rows.detach())).clamp(min=0.0)
        if reduction == "mean" and size:
            largest = base.amax()
            base = base / torch.where(largest == 0, 1.0, largest)
        weight = base.pow(positive_focus)
        if reduction == "mean":
            total = weight.sum()
            weight = weight / torch.where(total == 0, 1.0, total)
    else:
        weight = torch.full_like(rows, 1 / max(size, 1) if reduction == "mean" else 1.0)
    loss = weight * rows
    return weight, loss if reduction == "none" else loss.sum()
