"""Late interaction against NumPy in fp64: scores and directional derivatives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases
from tests.property.oracle_losses import STEP

Array = np.ndarray


def nearest(queries: Array, sources: Array, aggregate: str, scale: float) -> tuple[complex, float]:
    """The similarity of two sets, and how far the nearest kink is: two sources, or two queries."""
    if len(queries) == 0 or len(sources) == 0:
        return 0.0, np.inf
    s = queries @ sources.T
    best = s[np.arange(len(s)), s.real.argmax(axis=1)]
    gap = np.diff(np.sort(s.real, axis=1), axis=1)[:, -1:].min(initial=np.inf)
    top = best.real.max()
    if aggregate == "lse":
        return np.log(np.exp(scale * (best - top)).sum()) / scale + top, gap
    if aggregate == "max":
        near = np.diff(np.sort(best.real))[-1:].min(initial=np.inf)
        return best[best.real.argmax()], min(gap, near)
    return (best.mean() if aggregate == "mean" else best.sum()), gap


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """Sets of any size, none and one included, with lengths or without."""
    rng = np.random.default_rng(draw(cases.seeds))
    counts = st.sampled_from([0, 1, 2, 3, 9, 17])
    fragments = st.sampled_from([0, 1, 2, 5, 16, 37])
    dim = draw(st.sampled_from([1, 3, 16, 17, 64, 130, 257]))
    dtype = draw(st.sampled_from(cases.FLOATS))
    sides, lengths = [], []
    for _ in range(2):
        shape = draw(counts), draw(fragments)
        sides.append(torch.from_numpy(rng.normal(size=(*shape, dim)) / np.sqrt(dim)).to(dtype))
        given_lengths = rng.integers(0, shape[1] + 1, size=shape[0])
        lengths.append(given_lengths if draw(st.booleans()) else None)
    return {
        "rng": rng,
        "sides": sides,
        "lengths": lengths,
        "direction": draw(st.sampled_from(["t2i", "i2t"])),
        "aggregate": draw(st.sampled_from(["lse", "mean", "max", "sum"])),
        "aggregate_scale": draw(st.sampled_from([1.0, 6.0])),
    }


def scores_of(form: str, backend: str, case: dict[str, Any]) -> torch.Tensor:
    """(B, C) by all pairs, or by every pair as a chosen one."""
    v, e = case["sides"]
    names = "direction", "aggregate", "aggregate_scale"
    keywords = {name: case[name] for name in names} | {"attention": "max"}
    of_regions, of_words = (
        None if counts is None else torch.from_numpy(counts) for counts in case["lengths"]
    )
    function = sede.cross_attention_similarity
    if form == "chosen pairs":
        function = sede.cross_attention_pairs
        v, e = v.unsqueeze(1), e.unsqueeze(0).expand(len(v), *e.shape)
        of_regions = None if of_regions is None else of_regions.unsqueeze(1)
        of_words = None if of_words is None else of_words.expand(len(v), -1)
    lengths = {"region_lengths": of_regions, "word_lengths": of_words}
    return cases.served(backend, function, v, e, **lengths, **keywords)


@pytest.mark.parametrize("form", ["all pairs", "chosen pairs"])
@pytest.mark.parametrize("backend", [name for name in cases.backends() if name != "triton"])
@given(case=problems())
def test_late_interaction(backend: str, form: str, case: dict[str, Any]) -> None:
    v, e = (side.requires_grad_() for side in case["sides"])
    assume(form == "all pairs" or len(e) > 0)
    scores = scores_of(form, backend, case)
    upstream = torch.from_numpy(case["rng"].normal(size=scores.shape)).to(scores.dtype)
    grads = torch.autograd.grad(scores, [v, e], upstream, allow_unused=True)
    along = [case["rng"].normal(size=side.shape) for side in (v, e)]
    exact = [cases.exact(side) for side in (v, e)]
    want, moved, least = np.zeros(scores.shape), np.zeros(2), np.inf
    for b, c in np.ndindex(*scores.shape):
        for side in range(2):
            pair = [exact[0][b].astype(complex), exact[1][c].astype(complex)]
            pair[side] += 1j * STEP * along[side][(b, c)[side]]
            pair = [
                values if counts is None else values[: counts[at]]
                for values, counts, at in zip(pair, case["lengths"], (b, c), strict=True)
            ]
            queries, sources = pair[::-1] if case["direction"] == "t2i" else pair
            value, gap = nearest(queries, sources, case["aggregate"], case["aggregate_scale"])
            moved[side] += np.imag(value) / STEP * cases.exact(upstream)[b, c]
            want[b, c], least = np.real(value), min(least, gap)
    roundoff = cases.ROUNDOFF[cases.compute_dtype(v.dtype)]
    fragments = case["sides"][case["direction"] == "t2i"].shape[1]
    room = 64 * roundoff * max(fragments, 1) * np.sqrt(v.shape[2])
    assume(least > room)
    np.testing.assert_allclose(cases.exact(scores), want, rtol=1e-5, atol=room)
    for grad, expected, direction, side in zip(grads, moved, along, (v, e), strict=True):
        got = 0.0 if grad is None else float((cases.exact(grad) * direction).sum())
        steep = np.abs(cases.exact(upstream)).sum() * max(fragments, 1) * np.sqrt(v.shape[2])
        stored = 8 * cases.ROUNDOFF[side.dtype] + 64 * roundoff * (1 + case["aggregate_scale"])
        assert abs(got - expected) <= 1e-4 * abs(expected) + steep * stored + 1e-9
