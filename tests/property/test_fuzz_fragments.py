"""attention_erase and the region-word similarities against the NumPy oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases, oracle_fragments
from tests.property.oracle_fragments import Erasing
from tests.property.oracle_losses import STEP

FORMS = ("all pairs", "chosen pairs")
#: Beyond it rounding leaves a context too few digits to compare.
MOST_GROWTH = 1e5


@st.composite
def erasings(draw: Any) -> Erasing:
    rule = draw(st.sampled_from(["mean", "prob", "absolute", "relative", "topk", "quantile"]))
    threshold = {
        "absolute": draw(st.sampled_from([-0.1, 0.013, 0.2])),
        "relative": draw(st.sampled_from([0.0, 0.37, 1.0])),
        "topk": float(draw(st.integers(1, 12))),
        "quantile": draw(st.sampled_from([0.0, 0.3, 0.77, 1.0])),
    }.get(rule)
    keep_min = draw(st.sampled_from([1, 1, 2, 7]))
    return Erasing(
        rule, threshold, draw(st.sampled_from(["low", "high"])), keep_min, draw(st.booleans())
    )


@pytest.mark.parametrize("backend", cases.backends())
@given(
    seed=cases.seeds,
    rows=cases.sizes,
    width=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 300])),
    dtype=st.sampled_from(cases.FLOATS),
    layout=st.sampled_from(cases.LAYOUTS),
    how=erasings(),
    ragged=st.booleans(),
)
def test_attention_erase(
    backend: str,
    seed: int,
    rows: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    how: Erasing,
    ragged: bool,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.dirichlet(np.full(max(width, 1), 0.7), size=rows)[:, :width]
    attention = cases.laid_out(torch.from_numpy(values).to(dtype), layout).detach().requires_grad_()
    counts = rng.integers(0, width + 1, size=rows) if ragged else np.full(rows, width)
    out, mask = cases.served(
        backend,
        sede.attention_erase,
        attention,
        rule=how.rule,
        threshold=how.threshold,
        erase=how.erase,
        keep_min=how.keep_min,
        lengths=torch.from_numpy(counts) if ragged else None,
        renormalize=how.renormalize,
    )
    upstream = torch.from_numpy(rng.normal(size=out.shape)).to(dtype)
    (grad,) = torch.autograd.grad(out, attention, upstream)
    exact, along = cases.exact(attention), rng.normal(size=(rows, width))
    stored = cases.ROUNDOFF[dtype]
    edge = 16 * max(cases.ROUNDOFF[cases.compute_dtype(dtype)], 2.0**-53)
    for i in range(rows):
        n = counts[i]
        row, stay, gap = oracle_fragments.erased(exact[i, :n], how)
        assert not mask[i, n:].any() and not cases.exact(out)[i, n:].any()
        if 0 < gap <= edge:
            continue  # a tie that rounding decides
        assert mask[i, :n].tolist() == stay.tolist()
        np.testing.assert_allclose(cases.exact(out)[i, :n], row, rtol=8 * stored, atol=1e-7)
        moved, _, _ = oracle_fragments.erased(exact[i, :n] + 1j * STEP * along[i, :n], how)
        expected = float((moved.imag * cases.exact(upstream)[i, :n]).sum() / STEP)
        got = float((cases.exact(grad)[i, :n] * along[i, :n]).sum())
        kept = exact[i, :n][stay].sum()
        steep = 1 / kept if how.renormalize and kept > 0 else 1.0
        steep *= np.abs(cases.exact(upstream)[i]).max(initial=0.0)
        if steep > torch.finfo(dtype).max / 2:
            continue  # the gradient itself is beyond the dtype
        room = np.abs(along[i]).sum() * steep
        assert abs(got - expected) <= 16 * stored * room + 1e-9


@st.composite
def sets(draw: Any, cancelling: bool = False) -> dict[str, Any]:
    """Images and captions; ``cancelling``: attended about equally, and centred."""
    rng = np.random.default_rng(draw(cases.seeds))
    # Few pairs are computed as chosen ones: 7 x 3 are enough for the kernel of all pairs.
    most = [] if cases.INTERPRETING else [7]
    counts = st.sampled_from([7, 9] if cancelling else [0, 1, 2, 3, 4, *most])
    images, captions = draw(counts), draw(counts)
    regions, words = (
        draw(st.sampled_from([2, 7, 36] if cancelling else [0, 1, 3, 7, 36])),
        draw(st.sampled_from([1, 2, 5] if cancelling else [0, 1, 2, 5, 12])),
    )
    dim = draw(st.sampled_from([1, 2, 3, 8, 64] if cancelling else [4, 8, 17, 64, 130]))
    dtype = draw(st.sampled_from(cases.FLOATS))

    def side(count: int, length: int) -> torch.Tensor:
        values = rng.normal(size=(count, length, dim))
        if cancelling and length > 1:
            values -= values.mean(axis=1, keepdims=True)
        return torch.from_numpy(values).to(dtype)

    return {
        "rng": rng,
        "regions": side(images, regions),
        "words": side(captions, words),
        "region_lengths": rng.integers(0, regions + 1, size=images)
        if draw(st.booleans())
        else None,
        "word_lengths": rng.integers(0, words + 1, size=captions) if draw(st.booleans()) else None,
        "direction": draw(st.sampled_from(["t2i", "i2t"])),
        "smoothing": draw(
            st.sampled_from([0.001, 0.01, 0.1, 1.0] if cancelling else [0.5, 4.0, 9.0, 20.0])
        ),
        "aggregate": draw(st.sampled_from(["lse", "mean", "max", "sum"])),
        "aggregate_scale": draw(st.sampled_from([1.0, 6.0])),
        "how": None if cancelling else draw(st.one_of(st.none(), erasings())),
    }


def module_of(how: Erasing | None) -> sede.AttentionErase | None:
    if how is None:
        return None
    return sede.AttentionErase(
        rule=how.rule,
        threshold=how.threshold,
        erase=how.erase,
        keep_min=how.keep_min,
        renormalize=how.renormalize,
    )


def of_pair(
    case: dict[str, Any], image: np.ndarray, caption: np.ndarray, b: int, c: int
) -> tuple[complex, float, float]:
    """Oracle of one image and one caption, lengths applied."""
    if case["region_lengths"] is not None:
        image = image[: case["region_lengths"][b]]
    if case["word_lengths"] is not None:
        caption = caption[: case["word_lengths"][c]]
    queries, sources = (caption, image) if case["direction"] == "t2i" else (image, caption)
    return oracle_fragments.pair(
        queries, sources, case["smoothing"], case["aggregate"], case["aggregate_scale"], case["how"]
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", cases.backends())
@given(case=sets())
def test_cross_attention(backend: str, form: str, case: dict[str, Any]) -> None:
    compare(backend, form, case)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", cases.backends())
@given(case=sets(cancelling=True))
def test_contexts_that_cancel(backend: str, form: str, case: dict[str, Any]) -> None:
    compare(backend, form, case)


def compare(backend: str, form: str, case: dict[str, Any]) -> None:
    """Scores and directional derivatives beside the oracle's."""
    v, e = case["regions"].requires_grad_(), case["words"].requires_grad_()
    as_tensor = lambda counts: None if counts is None else torch.from_numpy(counts)  # noqa: E731
    keywords = {
        name: case[name] for name in ("direction", "smoothing", "aggregate", "aggregate_scale")
    }
    keywords |= {"erase": module_of(case["how"])}
    region_lengths = as_tensor(case["region_lengths"])
    word_lengths = as_tensor(case["word_lengths"])
    if form == "all pairs":
        scores = cases.served(
            backend,
            sede.cross_attention_similarity,
            v,
            e,
            region_lengths=region_lengths,
            word_lengths=word_lengths,
            **keywords,
        )
    else:
        assume(len(e) > 0)
        repeat = (len(v), len(e))
        scores = cases.served(
            backend,
            sede.cross_attention_pairs,
            v.unsqueeze(1),
            e.unsqueeze(0).expand(len(v), *e.shape),
            region_lengths=None if region_lengths is None else region_lengths.unsqueeze(1),
            word_lengths=None if word_lengths is None else word_lengths.expand(repeat),
            **keywords,
        )
    assert scores.shape == (len(v), len(e))
    upstream = torch.from_numpy(case["rng"].normal(size=scores.shape)).to(scores.dtype)
    grads = torch.autograd.grad(scores, [v, e], upstream, allow_unused=True)
    along = [case["rng"].normal(size=side.shape) for side in (v, e)]
    exact = [cases.exact(side) for side in (v, e)]
    expected, least, growth = np.zeros(2), np.inf, 1.0
    want = np.zeros(scores.shape)
    for b, c in np.ndindex(*scores.shape):
        value, gap, grown = of_pair(case, exact[0][b], exact[1][c], b, c)
        want[b, c], least, growth = np.real(value), min(least, gap), max(growth, grown)
        for side, (image, caption) in enumerate(
            (
                (exact[0][b] + 1j * STEP * along[0][b], exact[1][c]),
                (exact[0][b], exact[1][c] + 1j * STEP * along[1][c]),
            )
        ):
            moved, _, _ = of_pair(case, image, caption, b, c)
            expected[side] += np.imag(moved) / STEP * cases.exact(upstream)[b, c]
    roundoff = cases.ROUNDOFF[cases.compute_dtype(v.dtype)]
    many = case["words" if case["direction"] == "t2i" else "regions"].shape[1]
    many_of = many if case["aggregate"] == "sum" else 1
    reach = (1 + case["smoothing"]) * np.sqrt(v.shape[2]) * many_of
    assume(least > 64 * roundoff * reach and growth < MOST_GROWTH)
    # Where vectors cancel, forming the context costs `growth` roundings; its square, the square.
    room = 32 * roundoff * max(reach, many_of * growth / 8)
    np.testing.assert_allclose(cases.exact(scores), want, rtol=1e-5, atol=room)
    reach *= growth
    for side, name in enumerate(("regions", "words")):
        grad = grads[side]
        got = 0.0 if grad is None else float((cases.exact(grad) * along[side]).sum())
        steep = np.abs(cases.exact(upstream)).sum() * reach
        if steep > torch.finfo(v.dtype).max / 2:
            continue  # the gradient itself may be beyond the dtype
        room = steep * (64 * roundoff * reach + 8 * cases.ROUNDOFF[v.dtype])
        assert abs(got - expected[side]) <= 1e-4 * abs(expected[side]) + room + 1e-9, name
