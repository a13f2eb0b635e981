"""weighted_info_nce, bank_lse and hardest_negatives against the NumPy oracle, any combination."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases, oracle_losses
from tests.property.oracle_losses import Choice, Inputs, Masks

KS = [1, 2, 3, 10, 17] + [40, 100, 300] * (not cases.INTERPRETING)


def some_ids(draw: Any, rng: np.random.Generator, rows: int, low: int) -> torch.Tensor | None:
    if not draw(st.booleans()):
        return None
    return torch.from_numpy(rng.integers(low, draw(st.sampled_from([1, 6, 1000])), size=rows))


def some_bank(
    draw: Any, rng: np.random.Generator, size: int, dim: int, dtype: torch.dtype, length: float
) -> tuple[sede.MemoryBank, np.ndarray]:
    """A bank after some writes, and its rows as the oracle takes them."""
    bank = sede.MemoryBank(size, dim, dtype=dtype, normalize=draw(st.booleans()))
    stored = draw(st.integers(0, 2 * size))
    keys = cases.matrix(rng, stored, dim, torch.float32, "rows", length)
    bank.enqueue(keys, torch.from_numpy(rng.integers(0, 6, size=stored)))
    rows = cases.exact(bank.rows)
    if bank.row_scale is not None:
        rows = rows * cases.exact(bank.row_scale)[:, None]
    return bank, rows


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    rng = np.random.default_rng(draw(cases.seeds))
    rows, size, dim = draw(cases.sizes), draw(cases.slots), draw(cases.dims)
    dtype = draw(st.sampled_from(cases.FLOATS))
    length = draw(cases.lengths_of_rows)
    layouts = st.sampled_from(cases.LAYOUTS)
    query = cases.matrix(rng, rows, dim, dtype, draw(layouts), length)
    key = cases.matrix(rng, rows, dim, dtype, draw(layouts), length)
    query_ids = some_ids(draw, rng, rows, -1)
    bank_ids = None
    kind = draw(st.sampled_from(["tensor", "tensor", "float bank", "int8 bank"]))
    if kind == "tensor":
        of = draw(st.sampled_from([dtype, dtype, *cases.FLOATS]))
        bank = cases.matrix(rng, size, dim, of, draw(layouts), length)
        bank_ids = some_ids(draw, rng, size, -1)
        rows_of_bank = cases.exact(bank)
        known = None if bank_ids is None else bank_ids.numpy()
    else:
        of = torch.int8 if kind == "int8 bank" else draw(st.sampled_from(cases.FLOATS))
        bank, rows_of_bank = some_bank(draw, rng, max(size, 1), dim, of, length)
        known = bank.ids.numpy()
    ids = None if query_ids is None else query_ids.numpy()
    x = Inputs(cases.exact(query), cases.exact(key), rows_of_bank, 1.0, 0.0)
    return {
        "query": query,
        "key": key,
        "bank": bank,
        "query_ids": query_ids,
        "bank_ids": bank_ids,
        "inputs": x,
        "masks": Masks(ids, known),
        "rng": rng,
    }


@st.composite
def options(draw: Any) -> tuple[Choice, float, float]:
    choice = Choice(
        normalize_weights=draw(st.booleans()),
        detach_weights=draw(st.booleans()),
        positive_focus=draw(st.sampled_from([0.0, 0.0, 1.0, 2.5])),
        tau_plus=draw(st.sampled_from([0.0, 0.0, 0.1, 0.6])),
        false_negatives=draw(st.sampled_from(["mask", "keep", "positive"])),
        margin=draw(st.sampled_from([None, None, -0.2, 0.0, 0.3])),
        in_batch_negatives=draw(st.booleans()),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
    )
    temperature = draw(st.sampled_from([0.01, 0.05, 0.07, 0.5, 1.0]))
    return choice, temperature, draw(st.sampled_from([0.0, 0.0, 2.0, 10.0]))


def error_of_a_logit(x: Inputs, dtype: torch.dtype) -> float:
    """Rounding of (1/tau + beta) q.m in the kernel's arithmetic, with room for D additions."""
    reach = cases.longest(x.query) * cases.longest(x.key, x.bank)
    scale = abs(x.inverse_temperature) + abs(x.hardness)
    roundoff = cases.ROUNDOFF[cases.compute_dtype(dtype)]
    return 8 * roundoff * (1 + scale * reach) * np.sqrt(1 + x.query.shape[1] / 16)


@pytest.mark.parametrize("backend", cases.backends())
@given(problem=problems(), option=options())
def test_weighted_info_nce(backend: str, problem: dict[str, Any], option: tuple) -> None:
    choice, temperature, hardness = option
    query, key, masks = problem["query"], problem["key"], problem["masks"]
    if choice.false_negatives == "positive":
        assume(problem["query_ids"] is not None)
    it = torch.tensor(1.0 / temperature, dtype=torch.float64)
    tau = (1.0 / it).to(cases.compute_dtype(query.dtype)).requires_grad_()
    beta = torch.tensor(hardness, dtype=tau.dtype).requires_grad_()
    x = problem["inputs"]._replace(
        inverse_temperature=1.0 / tau.double().item(), hardness=beta.double().item()
    )
    slack = error_of_a_logit(x, query.dtype)
    assume(oracle_losses.edge(x, masks, choice) > 100 * slack)
    q, k = query.detach().requires_grad_(), key.detach().requires_grad_()
    loss = cases.served(
        backend,
        sede.weighted_info_nce,
        q,
        k,
        problem["bank"],
        temperature=tau,
        hardness=beta,
        query_ids=problem["query_ids"],
        bank_ids=problem["bank_ids"],
        **choice._asdict(),
    )
    want = oracle_losses.info_nce(x, masks, choice)
    # A debiased sum is a difference: its digits go as it nears zero.
    slack *= 1 if choice.tau_plus == 0 else 200 / (1 - choice.tau_plus)
    rows = len(x.query) if choice.reduction == "sum" else 1
    note(f"loss {cases.exact(loss)}, expected {want}, slack {slack}")
    np.testing.assert_allclose(cases.exact(loss), want, rtol=1e-5, atol=4 * slack * max(rows, 1))

    upstream = torch.from_numpy(problem["rng"].normal(size=loss.shape)).to(loss.dtype)
    grads = torch.autograd.grad((loss * upstream).sum(), [q, k, tau, beta], allow_unused=True)
    reach = abs(x.inverse_temperature) + abs(x.hardness)
    size = float(upstream.abs().sum()) * reach * cases.longest(x.query, x.key, x.bank)
    stored = 4 * cases.ROUNDOFF[query.dtype]
    for field, grad, along in (
        ("query", grads[0], problem["rng"].normal(size=query.shape)),
        ("key", grads[1], problem["rng"].normal(size=key.shape)),
        ("inverse_temperature", grads[2], 1.0),
        ("hardness", grads[3], 1.0),
    ):
        got = 0.0 if grad is None else float((cases.exact(grad) * along).sum())
        if field == "inverse_temperature":
            got *= -(tau.double().item() ** 2)
        expected = oracle_losses.derivative(x, masks, choice, field, along, cases.exact(upstream))
        room = size * float(np.abs(along).max(initial=0.0)) * (8 * slack + stored)
        room *= np.sqrt(query.shape[1]) if np.ndim(along) else cases.longest(x.query)
        note(f"d/d{field}: {got}, expected {expected}, room {room}")
        assert abs(got - expected) <= 1e-5 * abs(expected) + 1e-9 + room, field


@pytest.mark.parametrize("backend", cases.backends())
@given(
    problem=problems(),
    scales=st.lists(st.sampled_from([0.0, 1.0, 14.3, 60.0]), min_size=1, max_size=3),
)
def test_bank_lse(backend: str, problem: dict[str, Any], scales: list[float]) -> None:
    query, x = problem["query"].detach().requires_grad_(), problem["inputs"]
    c = torch.tensor(scales, dtype=cases.compute_dtype(query.dtype)).requires_grad_()
    out = cases.served(
        backend,
        sede.bank_lse,
        query,
        problem["bank"],
        c,
        query_ids=problem["query_ids"],
        bank_ids=problem["bank_ids"],
    )
    assert out.shape == (len(x.query), len(scales))
    upstream = torch.where(out.isfinite(), torch.randn_like(out), 0.0).detach()
    safe = torch.where(out.isfinite(), out, 0.0)
    of_query, of_scales = torch.autograd.grad((safe * upstream).sum(), [query, c])
    same, filled = oracle_losses.same_and_filled(problem["masks"], len(x.query), x.bank.shape[0])
    along = problem["rng"].normal(size=query.shape)
    moved = (x.query + 1j * oracle_losses.STEP * along) @ x.bank.T
    derivative = 0.0
    for column, scale in enumerate(scales):
        slack = error_of_a_logit(x._replace(inverse_temperature=scale), query.dtype)
        want = oracle_losses.masked_lse(scale * moved, filled & ~same)
        np.testing.assert_allclose(
            cases.exact(out[:, column]), want.real, rtol=1e-5, atol=4 * slack
        )
        finite = np.isfinite(want.real)
        weight = cases.exact(upstream[:, column])
        derivative += float((weight * want.imag)[finite].sum() / oracle_losses.STEP)
        by_scale = (1 + 1j * oracle_losses.STEP) * scale if scale else 1j * oracle_losses.STEP
        tangent = oracle_losses.masked_lse(by_scale * moved.real, filled & ~same).imag
        expected = float((weight * tangent)[finite].sum() / oracle_losses.STEP) / (scale or 1.0)
        size = float(np.abs(weight).sum()) * cases.longest(x.query) * cases.longest(x.bank)
        assert abs(float(of_scales[column]) - expected) <= 1e-5 * abs(expected) + 16 * slack * size
    slack = error_of_a_logit(x._replace(inverse_temperature=max(scales)), query.dtype)
    room = (
        float(upstream.abs().sum()) * max(scales) * cases.longest(x.bank) * np.sqrt(query.shape[1])
    )
    room *= float(np.abs(along).max(initial=0.0)) * (8 * slack + 4 * cases.ROUNDOFF[query.dtype])
    got = float((cases.exact(of_query) * along).sum())
    assert abs(got - derivative) <= 1e-5 * abs(derivative) + 1e-9 + room


@pytest.mark.parametrize("backend", cases.backends())
@given(problem=problems(), k=st.sampled_from(KS))
def test_hardest_negatives(backend: str, problem: dict[str, Any], k: int) -> None:
    query, x = problem["query"], problem["inputs"]
    values, indices = cases.served(
        backend,
        sede.hardest_negatives,
        query,
        problem["bank"],
        k,
        query_ids=problem["query_ids"],
        bank_ids=problem["bank_ids"],
    )
    want, order, s = oracle_losses.hardest(x, problem["masks"], k)
    slack = error_of_a_logit(x, query.dtype)
    np.testing.assert_allclose(cases.exact(values), want, rtol=1e-5, atol=4 * slack)
    found = indices.numpy()
    assert ((found == -1) == (order == -1)).all()
    for row, chosen in enumerate(found):
        valid = chosen[chosen >= 0]
        assert len(set(valid.tolist())) == len(valid)
        # Where two are equal up to rounding either may come first: each has the value it claims.
        np.testing.assert_allclose(
            s[row, valid], cases.exact(values)[row, : len(valid)], rtol=1e-5, atol=4 * slack
        )
