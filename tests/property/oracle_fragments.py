"""Erasing and region-word similarity in NumPy, fp64, with the context vectors written out.

Complex arrays give derivatives, as in ``oracle_losses``; decisions look at the real part.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Erasing(NamedTuple):
    """Rule of the attended set, its threshold, which side goes, and how many stay."""

    rule: str
    threshold: float | None
    erase: str
    keep_min: int
    renormalize: bool


def cut_of(a: Array, rule: str, threshold: float | None) -> tuple[float, bool]:
    """What an attended fragment of one row must exceed, and whether reaching it is enough."""
    if rule == "mean":
        return float(a.mean()), False
    if rule == "prob":
        total = float(np.sqrt(a).sum())
        return (float((a**1.5).sum()) / total if total > 0 else np.nan), False
    if rule == "absolute":
        return float(threshold), False  # type: ignore[arg-type]
    if rule == "relative":
        return float(threshold) * float(a.max()), True  # type: ignore[arg-type]
    return float(np.quantile(a, threshold)), True


def kept(a: Array, how: Erasing) -> tuple[Array, float]:
    """Which fragments of one row (n,) stay, and how near a value is to a decision's edge."""
    if len(a) == 0:
        return np.zeros(0, dtype=bool), np.inf
    by_size = np.argsort(-a, kind="stable")
    attended = np.zeros(len(a), dtype=bool)
    if how.rule == "topk":
        k = min(int(how.threshold), len(a))  # type: ignore[arg-type]
        attended[by_size[:k]] = True
        gap = abs(a[by_size[k - 1]] - a[by_size[k]]) if k < len(a) else np.inf
    else:
        cut, reached = cut_of(a, how.rule, how.threshold)
        attended = a >= cut if reached else a > cut
        gap = float(np.abs(a - cut).min()) if np.isfinite(cut) else 0.0
    stay = attended if how.erase == "low" else ~attended
    order = by_size if how.erase == "low" else np.argsort(a, kind="stable")
    for index in order:
        if stay.sum() >= how.keep_min:
            break
        stay[index] = True
    if stay.sum() <= how.keep_min:  # the fill was chosen by rank
        ranked = np.sort(a)
        gap = min(gap, float(np.diff(ranked).min(initial=np.inf)))
    return stay, float(gap)


def erased(a: Array, how: Erasing) -> tuple[Array, Array, float]:
    """(attention after erasing, mask of the kept, gap) of one row of valid fragments."""
    stay, gap = kept(a.real, how)
    out = np.where(stay, a, 0.0)
    total = out.sum()
    if how.renormalize and total.real != 0:
        out = out / total
    return out, stay, gap


def pair(
    queries: Array,
    sources: Array,
    smoothing: float,
    aggregate: str,
    scale: float,
    how: Erasing | None,
) -> tuple[complex, float, float]:
    """SCAN's similarity of a query set (L, D) with a source set (R, D).

    Also how far the nearest kink is, of leaky ReLU at 0 or of erasing, where a derivative has two
    values; and how much rounding grows where attended vectors cancel: the length of the longest
    source over that of the shortest context.
    """
    if len(queries) == 0 or len(sources) == 0:
        return 0.0, np.inf, 1.0
    s = queries @ sources.T
    gap = float(np.abs(s.real).min())
    s = np.where(s.real < 0, 0.1 * s, s)
    square = (s * s).sum(axis=0)
    norm = np.sqrt(np.where(square.real > 0, square, 1.0))
    s = smoothing * s / (np.where(square.real > 0, norm, 0.0) + 1e-8)
    e = np.exp(s - s.real.max(axis=1, keepdims=True))
    attention = e / e.sum(axis=1, keepdims=True)
    if how is not None:
        rows = [erased(row, how) for row in attention]
        attention = np.stack([row for row, _, _ in rows])
        gap = min(gap, *(g for _, _, g in rows))
    context = attention @ sources
    length = np.linalg.norm(context.real, axis=1).min()
    longest = np.linalg.norm(sources.real, axis=1).max()
    growth = max(1.0, longest / length) if length > 0 else np.inf
    size = np.sqrt((queries * queries).sum(axis=1)) * np.sqrt((context * context).sum(axis=1))
    cosine = (queries * context).sum(axis=1) / np.where(size.real < 1e-8, 1e-8, size)
    if aggregate == "lse":
        top = cosine.real.max()
        return np.log(np.exp(scale * (cosine - top)).sum()) / scale + top, gap, growth
    if aggregate == "max":
        ranked = np.sort(cosine.real)
        near = ranked[-1] - ranked[-2] if len(ranked) > 1 else np.inf
        return cosine[int(cosine.real.argmax())], min(gap, float(near)), growth
    return (cosine.mean() if aggregate == "mean" else cosine.sum()), gap, growth
