"""The weighted InfoNCE of given scores in plain arithmetic: a few (B, N) temporaries."""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends._info_nce_row import Value, reduce
from sede_kernels.precision import full_precision
from sede_kernels.score_types import SCORE_TABLE, ScoreGradients, ScoreLoss, Scores
from sede_kernels.types import EMPTY, InfoNCERule, Scalars, result_dtype


class _Chosen(NamedTuple):
    """Scores in the dtype of the results, and what each of them is."""

    scores: Tensor  # (B, N), 0 where neither
    negative: Tensor  # (B, N) bool
    further: Tensor | None  # (B, N) bool: positives besides the query's own

    @classmethod
    def of(cls, given: Scores, rule: InfoNCERule) -> "_Chosen":
        s = given.scores
        counts = s != -torch.inf
        if given.valid is not None:
            counts &= given.valid
        if given.positive is None:
            counts.fill_diagonal_(False)
        further = None
        if given.key_ids is not None:
            counts &= given.key_ids != EMPTY
            if given.ids is not None and rule.false_negatives != "keep":
                same = given.ids.unsqueeze(1) == given.key_ids
                further = counts & same if rule.extra_positives else None
                counts = counts & ~same
        used = counts if further is None else counts | further
        return cls(torch.where(used, s, 0).to(result_dtype(s)), counts, further)


def _numbers(scalars: Scalars, rule: InfoNCERule) -> tuple[Value, Value]:
    """1 / tau and beta, tensors where they came as such."""
    at = scalars.temperature_at
    hardness: Value = scalars.hardness if scalars.hardness_at is None else scalars.hardness_at
    return 1.0 / (scalars.temperature if at is None else at), hardness if rule.weighted else 0.0


class _Sums(NamedTuple):
    """Sums of e^{c (s - most)} over the chosen of each row."""

    most: Tensor  # (B,) the largest chosen score, -inf without one
    column: Tensor  # (B,) int64 its column, -1 without one
    number: Tensor  # (B,) int64, how many are chosen
    shift: list[Tensor]  # (B,) of each exponent, their logs; 0 without a chosen one
    mean: list[Tensor]  # (B,) likewise, the weighted means of s - most

    @classmethod
    def over(cls, s: Tensor, chosen: Tensor, exponents: list[Value], means: bool) -> "_Sums":
        number = chosen.sum(dim=1)
        # One column more, so that a row without a chosen one has its largest in none.
        kept = torch.nn.functional.pad(s.masked_fill(~chosen, -torch.inf), (0, 1), value=-torch.inf)
        most, column = kept.max(dim=1)
        some = number > 0
        below = s - most.masked_fill(~some, 0.0).unsqueeze(1)
        shift, mean = [], []
        for exponent in exponents:
            weight = (below * exponent).exp().masked_fill(~chosen, 0.0)
            total = weight.sum(dim=1).masked_fill(~some, 1.0)
            shift.append(total.log())
            if means:
                mean.append((weight * below).sum(dim=1) / total)
        return cls(most, column.masked_fill(most == -torch.inf, -1), number, shift, mean)


class _Further(NamedTuple):
    """What positives besides the query's own add to a row; nothing where there is none."""

    own: Tensor  # the share of the query's own in the sum over its positives
    log_positives: Tensor  # log of that sum; all logits and scores relative to the row's base
    attracted: Tensor  # the mean score of the positives in it
    mean: Tensor  # and without weights
    more: Tensor  # (B,) bool
    share: Tensor  # of one positive in the unweighted mean

    @classmethod
    def of(cls, extra: _Sums, inverse: Value, gap: Tensor, base: Tensor) -> "_Further":
        more = extra.number > 0
        ahead = (extra.most - base).masked_fill(~more, 0.0)
        total = (inverse * ahead + extra.shift[0]).masked_fill(~more, -torch.inf)
        own = (inverse * gap - total).sigmoid()
        number = extra.number.to(gap.dtype)
        return cls(
            own,
            torch.logaddexp(inverse * gap, total),
            own * gap + (1 - own) * (ahead + extra.mean[0]),
            (gap + number * (ahead + extra.mean[1])) / (1 + number),
            more,
            1 / (1 + number),
        )


def _rows(
    rule: InfoNCERule,
    numbers: tuple[Value, Value],
    positive: Tensor,
    sums: _Sums,
    extra: _Sums | None,
) -> dict[str, Tensor]:
    """The rows of the table, their weight in the loss left out.

    Logits are taken relative to that of the hardest negative, so that large scores, whose loss is
    a difference of their logits, keep its digits.
    """
    inverse, hardness = numbers
    some = sums.number > 0
    base = torch.where(some, sums.most, positive)
    gap = positive - base
    log_negatives = sums.shift[0]
    if rule.exponents == 2:
        log_negatives = sums.number.to(gap.dtype).log() + log_negatives - sums.shift[1]
    elif rule.weighted:
        log_negatives = log_negatives + hardness * base
    log_negatives = log_negatives.masked_fill(~some, -torch.inf)
    further = None if extra is None else _Further.of(extra, inverse, gap, base)
    above = log_negatives - (inverse * gap if further is None else further.log_positives)
    pi = above.sigmoid()
    # log(1 + e^x): a loss near 0 keeps its digits beside logits of 1 / tau.
    loss = torch.nn.functional.softplus(above, threshold=50)
    by_positive = -pi * inverse
    attracted = gap
    if further is not None:
        loss = loss + torch.where(further.more, further.log_positives - inverse * further.mean, 0.0)
        by_positive = inverse * (further.own - further.share - pi * further.own)
        attracted = further.attracted
    rows = {
        "loss": loss,
        "positive": positive,
        "log_negatives": log_negatives + inverse * base,
        "hardest": sums.most,
        "positive_grad": by_positive,
        "shift": sums.shift[0],
        "grad": pi * (inverse if rule.detach_weights else inverse + hardness),
    }
    if rule.exponents == 2 and not rule.detach_weights:
        rows["shift_1"], rows["grad_1"] = sums.shift[1], -pi * hardness
    if rule.scalar_grad:
        by_inverse = pi * (sums.mean[0] - attracted)
        if further is not None:
            by_inverse = by_inverse + attracted - further.mean
        rows["temperature_grad"] = by_inverse * -(inverse * inverse)
        if rule.weighted:
            rows["hardness_grad"] = pi * (
                sums.mean[0] - (sums.mean[1] if rule.exponents == 2 else -base)
            )
    if extra is not None and further is not None:
        rows["extra_most"], rows["extra_shift"] = extra.most, extra.shift[0]
        rows["extra_grad"] = inverse * (1 - pi) * (1 - further.own)
        rows["extra_grad_1"] = -inverse * further.share
    return rows


def score_info_nce(given: Scores, scalars: Scalars, rule: InfoNCERule) -> ScoreLoss:
    """See ``sede_kernels.ops.score_info_nce``."""
    with torch.no_grad(), full_precision(given.scores.device.type):
        return _forward(given, scalars, rule)


def _forward(given: Scores, scalars: Scalars, rule: InfoNCERule) -> ScoreLoss:
    chosen = _Chosen.of(given, rule)
    s, dtype = chosen.scores, chosen.scores.dtype
    inverse, hardness = _numbers(scalars, rule)
    positive = given.scores.diagonal() if given.positive is None else given.positive
    positive = positive.to(dtype)
    exponents = [inverse + hardness, hardness][: rule.exponents]
    sums = _Sums.over(s, chosen.negative, exponents, rule.scalar_grad)
    extra = None
    if chosen.further is not None:
        extra = _Sums.over(s, chosen.further, [inverse, 0.0], True)
    rows = _rows(rule, (inverse, hardness), positive, sums, extra)
    weight, loss = reduce(rows["loss"], 0.0, rule.reduction)
    zero = torch.zeros_like(rows["loss"])
    table = torch.stack(
        [
            rows[name] * weight if name in rows and "grad" in name else rows.get(name, zero)
            for name in SCORE_TABLE
        ]
    )
    return ScoreLoss(loss, table, sums.number, sums.column)


def score_info_nce_backward(
    grad: Tensor,
    table: Tensor,
    given: Scores,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    spare: Tensor | None = None,
) -> ScoreGradients:
    """See ``sede_kernels.ops.score_info_nce``."""
    row = dict(zip(SCORE_TABLE, table.unbind(), strict=True))
    found = ScoreGradients.empty(grad, given, needs, spare)
    with torch.no_grad(), full_precision(given.scores.device.type):
        by_positive = row["positive_grad"] * grad
        if needs[0]:
            by_score = _by_score(row, given, scalars, rule) * grad.expand(table.shape[1])[:, None]
            if given.positive is None:
                by_score.diagonal().copy_(by_positive)
            found.scores.copy_(by_score)
        if needs[1]:
            found.positive.copy_(by_positive)
        if needs[2]:
            found.temperature.copy_((row["temperature_grad"] * grad).sum())
        if needs[3]:
            found.hardness.copy_((row["hardness_grad"] * grad).sum())
    return found


def _by_score(row: dict[str, Tensor], given: Scores, scalars: Scalars, rule: InfoNCERule) -> Tensor:
    """(B, N) the derivatives by the scores, for an upstream gradient of 1."""
    chosen = _Chosen.of(given, rule)
    inverse, hardness = _numbers(scalars, rule)

    def part(exponent: Value, most: str, shift: str, factor: str) -> Tensor:
        above = (chosen.scores - row[most][:, None]) * exponent - row[shift][:, None]
        return row[factor][:, None] * above.exp()

    total = part(inverse + hardness, "hardest", "shift", "grad")
    if rule.exponents == 2 and not rule.detach_weights:
        total = total + part(hardness, "hardest", "shift_1", "grad_1")
    total = total.masked_fill(~chosen.negative, 0.0)
    if chosen.further is None:
        return total
    further = (
        part(inverse, "extra_most", "extra_shift", "extra_grad") + row["extra_grad_1"][:, None]
    )
    return torch.where(chosen.further, further, total)
