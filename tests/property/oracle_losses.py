"""Losses over negatives in NumPy, fp64, from the formulas of docs/method.md alone.

Nothing here is shared with the package. Every function also takes complex arrays: the imaginary
part of f(x + i h v) / h is the exact derivative along v (no difference is taken), and what a loss
detaches is the real part.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray
STEP = 1e-30


class Inputs(NamedTuple):
    """What a loss is a function of: queries, keys (B, D), bank (K, D), and its two numbers."""

    query: Array
    key: Array
    bank: Array
    inverse_temperature: complex
    hardness: complex


class Masks(NamedTuple):
    """Ids of queries and bank rows; None where there are none."""

    query_ids: Array | None
    bank_ids: Array | None


class Choice(NamedTuple):
    """The options of the loss."""

    normalize_weights: bool = True
    detach_weights: bool = True
    positive_focus: float = 0.0
    tau_plus: float = 0.0
    false_negatives: str = "mask"
    margin: float | None = None
    in_batch_negatives: bool = False
    reduction: str = "mean"


def same_and_filled(masks: Masks, rows: int, size: int) -> tuple[Array, Array]:
    """(B, K): whether query i and slot j share an id, and whether slot j is filled."""
    same = np.zeros((rows, size), dtype=bool)
    filled = np.ones((rows, size), dtype=bool)
    if masks.bank_ids is not None:
        filled[:, masks.bank_ids == -1] = False
        if masks.query_ids is not None:
            same = masks.query_ids[:, None] == masks.bank_ids[None, :]
    return same & filled, filled


def masked_lse(logits: Array, chosen: Array) -> Array:
    """log of the sum of exp over the chosen of each row; -inf for a row without any."""
    zeroed = np.where(chosen, logits, 0.0)
    top = np.where(chosen, zeroed.real, -np.inf).max(axis=1, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.where(chosen, np.exp(zeroed - top[:, None]), 0.0).sum(axis=1)
    some = chosen.any(axis=1)
    return np.where(some, np.log(np.where(some, total, 1.0)) + top, -np.inf)


def similarities(x: Inputs, masks: Masks, choice: Choice) -> tuple[Array, Array, Array, Array]:
    """(s+, s, negatives, extra positives): columns are the bank's slots, then the batch's keys."""
    rows, size = x.query.shape[0], x.bank.shape[0]
    positive = (x.query * x.key).sum(axis=1)
    s = x.query @ x.bank.T
    same, filled = same_and_filled(masks, rows, size)
    if choice.in_batch_negatives:
        other = ~np.eye(rows, dtype=bool)
        twins, known = same_and_filled(Masks(masks.query_ids, masks.query_ids), rows, rows)
        same = np.concatenate([same, twins & known & other], axis=1)
        filled = np.concatenate([filled, other], axis=1)
        s = np.concatenate([s, x.query @ x.key.T], axis=1)
    negative = filled if choice.false_negatives == "keep" else filled & ~same
    if choice.margin is not None:
        negative = negative & (s.real <= positive.real[:, None] + choice.margin)
    return positive, s, negative, same


def log_negatives(x: Inputs, s: Array, negative: Array, choice: Choice) -> Array:
    """LN (B,): log of the weighted sum over the negatives."""
    weight = x.hardness * (s.real if choice.detach_weights else s)
    total = masked_lse(x.inverse_temperature * s + weight, negative)
    if choice.normalize_weights:
        count = np.maximum(negative.sum(axis=1), 1)
        norm = masked_lse(weight, negative)
        total = total + np.where(negative.any(axis=1), np.log(count) - norm, 0.0)
    return total


def debiased(total: Array, logit: Array, count: Array, it: complex, prior: float) -> Array:
    """Chuang et al. 2020: max((N - prior n e^{s+/tau}) / (1 - prior), n e^{-1/tau}), in logs."""
    out = total.astype(np.result_type(total, logit, it))
    for i, n in enumerate(count):
        if n == 0:
            continue
        top = max(total[i].real, logit[i].real)
        raw = np.exp(total[i] - top) - prior * n * np.exp(logit[i] - top)
        least = np.log(n) - it if np.isfinite(it) else -np.inf
        if raw.real > 0:
            value = np.log(raw / (1 - prior)) + top
            out[i] = value if value.real > least.real else least
        else:
            out[i] = least
    return out


def softplus(x: Array) -> Array:
    """log(1 + e^x); 0 for -inf."""
    finite = np.where(np.isfinite(x.real), x, 0.0)
    above = finite.real > 0
    small = np.log1p(np.exp(np.where(above, -finite, finite)))
    return np.where(np.isfinite(x.real), np.where(above, finite + small, small), 0.0)


def row_losses(x: Inputs, masks: Masks, choice: Choice) -> Array:
    """(B,) losses before focus and reduction."""
    positive, s, negative, extra = similarities(x, masks, choice)
    it = x.inverse_temperature
    total = log_negatives(x, s, negative, choice)
    logit = it * positive
    if choice.tau_plus:
        total = debiased(total, logit, negative.sum(axis=1), it, choice.tau_plus)
    log_positives = mean_logit = logit
    if choice.false_negatives == "positive":
        both = np.concatenate([positive[:, None], s], axis=1)
        own = np.concatenate([np.ones((len(s), 1), dtype=bool), extra], axis=1)
        log_positives = masked_lse(it * both, own)
        mean_logit = it * np.where(own, both, 0.0).sum(axis=1) / own.sum(axis=1)
    return softplus(total - log_positives) + (log_positives - mean_logit)


def reduced(rows: Array, choice: Choice) -> Array:
    """Focus and reduction: (B,) for "none", else a scalar."""
    weight = np.ones(rows.shape)
    if choice.positive_focus:
        weight = np.maximum(-np.expm1(-rows.real), 0.0) ** choice.positive_focus
    weighted = weight * rows
    if choice.reduction == "none":
        return weighted
    total = weighted.sum()
    if choice.reduction == "mean" and weight.sum() > 0:
        total = total / weight.sum()
    return total


def info_nce(x: Inputs, masks: Masks, choice: Choice) -> Array:
    """The weighted InfoNCE, reduced."""
    return reduced(row_losses(x, masks, choice), choice)


def derivative(
    x: Inputs, masks: Masks, choice: Choice, field: str, along: Array | float, upstream: Array
) -> float:
    """d sum(upstream * loss) along a direction of one field of the inputs."""
    moved = x._replace(**{field: getattr(x, field) + 1j * STEP * along})
    return float((upstream * info_nce(moved, masks, choice)).sum().imag / STEP)


def edge(x: Inputs, masks: Masks, choice: Choice) -> float:
    """Distance of the nearest value to a decision (margin, floor of the debiased sum).

    Below rounding either side of the decision is right.
    """
    positive, s, negative, _ = similarities(x, masks, choice)
    gap = np.inf
    if choice.margin is not None:
        free = choice._replace(margin=None)
        _, every, _, _ = similarities(x, masks, free)
        away = np.abs(every.real - positive.real[:, None] - choice.margin)
        gap = float(away.min(initial=np.inf))
    if choice.tau_plus:
        total = log_negatives(x, s, negative, choice)
        it, count = x.inverse_temperature, negative.sum(axis=1)
        raw = debiased(total, it * positive, count, -np.inf, choice.tau_plus)
        for i in np.flatnonzero(count):
            least = np.log(count[i]) - it
            if np.isfinite(raw[i]):
                gap = min(gap, abs(raw[i] - least))
    return float(gap)


def hardest(x: Inputs, masks: Masks, k: int) -> tuple[Array, Array, Array]:
    """((B, k) values, descending; their indices; all valid similarities, else -inf)."""
    same, filled = same_and_filled(masks, x.query.shape[0], x.bank.shape[0])
    s = np.where(filled & ~same, x.query.real @ x.bank.real.T, -np.inf)
    padded = np.concatenate([s, np.full((len(s), k), -np.inf)], axis=1)
    order = np.argsort(-padded, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(padded, order, axis=1)
    return values, np.where(values == -np.inf, -1, order), s
