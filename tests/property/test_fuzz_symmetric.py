"""symmetric_info_nce against the NumPy oracle: two directions, and banks that are alike or not."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases, oracle_losses
from tests.property.oracle_losses import STEP, Choice, Inputs, Masks
from tests.property.test_fuzz_losses import error_of_a_logit, options, some_bank, some_ids

SIDES = ("image", "text")


@st.composite
def both_sides(draw: Any) -> dict[str, Any]:
    rng = np.random.default_rng(draw(cases.seeds))
    rows, dim = draw(cases.sizes), draw(cases.dims)
    dtype, length = draw(st.sampled_from(cases.FLOATS)), draw(cases.lengths_of_rows)
    matrices = {
        name: cases.matrix(
            rng, rows, dim, dtype, draw(st.sampled_from(cases.LAYOUTS)), length
        ).detach()
        for name in (*SIDES, "image_key", "text_key")
    }
    banks, of_rows, known = {}, {}, {}
    size, of = draw(cases.slots), draw(st.sampled_from([*cases.FLOATS, torch.int8, None]))
    for side in SIDES:
        if draw(st.integers(0, 3)) == 0:  # else as the side before: one pass serves both
            size, of = draw(cases.slots), draw(st.sampled_from([*cases.FLOATS, torch.int8, None]))
        if of is None:
            bank = cases.matrix(rng, size, dim, dtype, draw(st.sampled_from(cases.LAYOUTS)), length)
            banks[side], of_rows[side], known[side] = bank.detach(), cases.exact(bank), None
        else:
            bank, of_rows[side] = some_bank(draw, rng, max(size, 1), dim, of, length)
            banks[side], known[side] = bank, bank.ids.numpy()
    ids = some_ids(draw, rng, rows, -1)
    return {
        "rng": rng,
        "dtype": dtype,
        "matrices": matrices,
        "banks": banks,
        "rows": of_rows,
        "ids": ids,
        "masks": {side: Masks(None if ids is None else ids.numpy(), known[side]) for side in SIDES},
    }


def inputs(
    case: dict[str, Any], values: dict[str, Any], it: complex, beta: complex
) -> list[Inputs]:
    """The problems of both directions: images among texts, texts among images."""
    return [
        Inputs(values["image"], values["text_key"], case["rows"]["text"], it, beta),
        Inputs(values["text"], values["image_key"], case["rows"]["image"], it, beta),
    ]


def loss_of(case: dict[str, Any], sides: list[Inputs], choice: Choice) -> np.ndarray:
    masks = [case["masks"][side] for side in reversed(SIDES)]
    return sum(oracle_losses.info_nce(x, m, choice) for x, m in zip(sides, masks, strict=True)) / 2


@pytest.mark.parametrize("backend", cases.backends())
@given(case=both_sides(), option=options(), as_flag=st.booleans())
def test_symmetric_info_nce(
    backend: str, case: dict[str, Any], option: tuple[Choice, float, float], as_flag: bool
) -> None:
    choice, temperature, hardness = option
    if choice.false_negatives == "positive":
        assume(case["ids"] is not None)
    of = cases.compute_dtype(case["dtype"])
    tau = torch.tensor(temperature, dtype=of).requires_grad_()
    beta = torch.tensor(hardness, dtype=of).requires_grad_()
    it = 1.0 / tau.double().item()
    exact = {name: cases.exact(matrix) for name, matrix in case["matrices"].items()}
    sides = inputs(case, exact, it, beta.double().item())
    slack = max(error_of_a_logit(x, case["dtype"]) for x in sides)
    for x, side in zip(sides, reversed(SIDES), strict=True):
        assume(oracle_losses.edge(x, case["masks"][side], choice) > 100 * slack)
    given_matrices = {n: m.clone().requires_grad_() for n, m in case["matrices"].items()}
    keywords = choice._asdict()
    if as_flag:
        keywords["in_batch_negatives"] = torch.tensor(choice.in_batch_negatives)
    loss = cases.served(
        backend,
        sede.symmetric_info_nce,
        *given_matrices.values(),
        case["banks"]["image"],
        case["banks"]["text"],
        temperature=tau,
        hardness=beta,
        ids=case["ids"],
        **keywords,
    )
    want = loss_of(case, sides, choice)
    slack *= 1 if choice.tau_plus == 0 else 200 / (1 - choice.tau_plus)
    many = max(len(exact["image"]) if choice.reduction == "sum" else 1, 1)
    note(f"loss {cases.exact(loss)}, expected {want}, slack {slack}")
    np.testing.assert_allclose(cases.exact(loss), want, rtol=1e-5, atol=4 * slack * many)

    upstream = torch.from_numpy(case["rng"].normal(size=loss.shape)).to(loss.dtype)
    grads = torch.autograd.grad(
        (loss * upstream).sum(), [*given_matrices.values(), tau, beta], allow_unused=True
    )
    longest = cases.longest(*exact.values(), *case["rows"].values())
    size = float(upstream.abs().sum()) * (it + abs(hardness)) * longest
    room_of_one = 8 * slack + 4 * cases.ROUNDOFF[case["dtype"]]
    weight = cases.exact(upstream)
    for name, grad in zip((*given_matrices, "it", "beta"), grads, strict=True):
        values, steps = dict(exact), {"it": 0.0, "beta": 0.0}
        along: Any = 1.0
        if name in steps:
            steps[name] = STEP
        else:
            along = case["rng"].normal(size=exact[name].shape)
            values[name] = exact[name] + 1j * STEP * along
        moved = inputs(
            case, values, it + 1j * steps["it"], beta.double().item() + 1j * steps["beta"]
        )
        expected = float((weight * loss_of(case, moved, choice)).sum().imag / STEP)
        got = 0.0 if grad is None else float((cases.exact(grad) * along).sum())
        got *= -(tau.double().item() ** 2) if name == "it" else 1.0
        room = size * float(np.abs(along).max(initial=0.0)) * room_of_one
        room *= longest if name in steps else np.sqrt(exact["image"].shape[1])
        note(f"d/d{name}: {got}, expected {expected}, room {room}")
        assert abs(got - expected) <= 1e-5 * abs(expected) + 1e-9 + room, name
