"""score_info_nce against the NumPy oracle: any masks, layouts, options and sizes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases, oracle_losses
from tests.property.oracle_losses import Choice, Inputs

Array = np.ndarray
STEP = oracle_losses.STEP


def rows_of(scores: Array, right: Array, masks: tuple[Array, Array], x: Inputs, choice: Choice):
    """(B,) losses; ``masks`` are the negatives and the further positives."""
    negative, further = masks
    it = x.inverse_temperature
    total = oracle_losses.log_negatives(x, scores, negative, choice)
    own = np.ones((len(right), 1), dtype=bool)
    both, of_both = np.concatenate([right[:, None], scores], 1), np.concatenate([own, further], 1)
    positives = oracle_losses.masked_lse(it * both, of_both)
    mean = it * np.where(of_both, both, 0.0).sum(1) / of_both.sum(1)
    return oracle_losses.softplus(total - positives) + (positives - mean)


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    rng = np.random.default_rng(draw(cases.seeds))
    rows, columns = draw(cases.sizes), draw(cases.slots)
    own = draw(st.booleans())
    columns = max(columns, rows) if own else columns
    dtype = draw(st.sampled_from(cases.FLOATS))
    values = rng.normal(size=(rows, columns)) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    scores = torch.from_numpy(values).to(dtype)
    scores = cases.laid_out(scores, draw(st.sampled_from(cases.LAYOUTS)))
    right = scores.diagonal() if own else torch.from_numpy(rng.normal(size=rows)).to(dtype)
    valid = ids = key_ids = None
    counts, same = np.ones((rows, columns), dtype=bool), np.zeros((rows, columns), dtype=bool)
    if draw(st.booleans()):
        counts = rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.5, 0.95]))
        valid = torch.from_numpy(counts)
    if draw(st.booleans()):
        key_ids = torch.from_numpy(rng.integers(-1, draw(st.sampled_from([1, 6])), size=columns))
        counts = counts & (key_ids.numpy() != -1)
        if draw(st.booleans()):
            ids = torch.from_numpy(rng.integers(-1, 6, size=rows))
            same = ids.numpy()[:, None] == key_ids.numpy()
    if own:
        counts = counts & ~np.eye(rows, columns, dtype=bool)
    return {
        "scores": scores,
        "right": right,
        "own": own,
        "given": {"valid": valid, "query_ids": ids, "key_ids": key_ids},
        "counts": counts,
        "same": counts & same,
        "rng": rng,
    }


@st.composite
def options(draw: Any) -> tuple[Choice, float, float]:
    choice = Choice(
        normalize_weights=draw(st.booleans()),
        detach_weights=draw(st.booleans()),
        false_negatives=draw(st.sampled_from(["mask", "keep", "positive"])),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
    )
    temperature = draw(st.sampled_from([0.01, 0.07, 0.5, 1.0]))
    return choice, temperature, draw(st.sampled_from([0.0, 0.0, 2.0, 10.0]))


@pytest.mark.parametrize("backend", cases.backends())
@given(problem=problems(), option=options())
def test_score_info_nce(backend: str, problem: dict[str, Any], option: tuple) -> None:
    choice, temperature, hardness = option
    if problem["given"]["query_ids"] is None and choice.false_negatives == "positive":
        choice = choice._replace(false_negatives="mask")
    scores, right = problem["scores"], problem["right"]
    wide = cases.compute_dtype(scores.dtype)
    tau = torch.tensor(temperature, dtype=wide, requires_grad=True)
    beta = torch.tensor(hardness, dtype=wide, requires_grad=True)
    s, p = scores.detach().requires_grad_(), right.detach().clone().requires_grad_()
    loss = cases.served(
        backend,
        sede.score_info_nce,
        s,
        None if problem["own"] else p,
        temperature=tau,
        hardness=beta,
        normalize_weights=choice.normalize_weights,
        detach_weights=choice.detach_weights,
        false_negatives=choice.false_negatives,
        reduction=choice.reduction,
        **problem["given"],
    )
    counts, same = problem["counts"], problem["same"]
    masks = (counts if choice.false_negatives == "keep" else counts & ~same), same
    if choice.false_negatives != "positive":
        masks = masks[0], np.zeros_like(same)
    nothing = np.zeros((0, 0))
    x = Inputs(nothing, nothing, nothing, 1.0 / tau.double().item(), beta.double().item())
    exact, exact_right = cases.exact(scores), cases.exact(right)

    def value(s: Array, r: Array, x: Inputs) -> Array:
        return oracle_losses.reduced(rows_of(s, r, masks, x, choice), choice)

    reach = max(float(np.abs(v).max(initial=0.0)) for v in (exact, exact_right))
    scale = x.inverse_temperature + x.hardness
    slack = 8 * cases.ROUNDOFF[wide] * (1 + scale * reach)
    want = value(exact, exact_right, x)
    note(f"loss {cases.exact(loss)}, expected {want}, slack {slack}")
    many = len(exact) if choice.reduction == "sum" else 1
    np.testing.assert_allclose(cases.exact(loss), want, rtol=1e-5, atol=4 * slack * max(many, 1))

    upstream = torch.from_numpy(problem["rng"].normal(size=loss.shape)).to(loss.dtype)
    learned = [s, tau, beta] + ([] if problem["own"] else [p])
    grads = [cases.exact(g) for g in torch.autograd.grad((loss * upstream).sum(), learned)]
    along, beside = (problem["rng"].normal(size=v.shape) for v in (exact, exact_right))
    moved = exact + 1j * STEP * along
    moved_right = moved.diagonal() if problem["own"] else exact_right + 1j * STEP * beside
    got = (grads[0] * along).sum() + sum((g * beside).sum() for g in grads[3:])
    stored = 4 * cases.ROUNDOFF[scores.dtype]
    size = float(upstream.abs().sum()) * scale * max(float(np.abs(along).max(initial=0.0)), 1.0)
    it = x.inverse_temperature
    by_it = x._replace(inverse_temperature=it + 1j * STEP)
    by_beta = x._replace(hardness=x.hardness + 1j * STEP)
    for name, found, point, room in (
        ("scores", got, (moved, moved_right, x), size * 4 * (8 * slack + stored)),
        (
            "1 / tau",
            float(-grads[1] / it**2),
            (exact, exact_right, by_it),
            size * 8 * slack * reach,
        ),
        ("beta", float(grads[2]), (exact, exact_right, by_beta), size * 8 * slack * reach),
    ):
        expected = float((cases.exact(upstream) * value(*point)).sum().imag / STEP)
        note(f"d/d{name}: {found}, expected {expected}, room {room}")
        assert abs(found - expected) <= 1e-5 * abs(expected) + 1e-9 + room, name
