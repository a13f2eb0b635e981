"""torch.compile where numbers change between calls: one graph serves them, values as in eager."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import sede_kernels as sede
from tests.conftest import unit

BANK = unit(33, 16, dtype=torch.float32)
#: (query, number) -> value; the number goes into every argument that compiled code can keep open.
CHANGING = {
    "temperature, margin": lambda q, x: sede.weighted_info_nce(
        q, q.flip(0), BANK, temperature=x, margin=x
    ),
    "hardness": lambda q, x: sede.weighted_info_nce(
        q, q.flip(0), BANK, hardness=x, detach_weights=False, in_batch_negatives=True
    ),
    "both directions": lambda q, x: sede.symmetric_info_nce(
        q, q.flip(0), q, q, BANK, BANK.flip(0), temperature=x, hardness=x
    ),
    "scores": lambda q, x: sede.score_info_nce(q, temperature=x, hardness=x),
    "scales": lambda q, x: sede.bank_lse(q, BANK, [x, 2.0]).sum(),
}  # fmt: skip
#: Numbers that an op takes as such: each is a graph of its own.
FIXED = {
    "focus": lambda q, x: sede.weighted_info_nce(
        q, q.flip(0), BANK, positive_focus=x, tau_plus=x / 10
    ),
    "threshold": lambda q, x: sede.attention_erase(
        q.square(), rule="absolute", threshold=x / 99
    )[0].square().sum(),
    "smoothing": lambda q, x: sede.cross_attention_similarity(
        q[None], BANK[None], smoothing=x, aggregate_scale=x
    ).sum(),
}  # fmt: skip
EVERY = {**CHANGING, **FIXED}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def assert_same(compiled, name: str, rows: int, number: float) -> None:
    query = unit(rows, 16, dtype=torch.float32).requires_grad_()
    got, want = compiled(query, number), EVERY[name](query, number)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, query)[0] for x in (got, want)))


@pytest.mark.parametrize("name", CHANGING)
def test_a_number_that_changes_soon_compiles_no_more(name) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(EVERY[name], fullgraph=True, backend=counter)
    for number in (1.0, 2.0, 3.0):
        assert_same(compiled, name, 9, number)
    graphs = counter.frame_count
    for number in (0.5, 1.25, 2.5):
        assert_same(compiled, name, 9, number)
    assert counter.frame_count == graphs, "each number compiles anew"


@pytest.mark.parametrize("name", EVERY)
def test_dynamic_compiles_whole(name) -> None:
    compiled = torch.compile(EVERY[name], fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(compiled, name, 9, 1.5)
    assert_same(compiled, name, 5, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0], ids=str)
def test_a_bad_number_is_refused_in_compiled_code_too(value) -> None:
    compiled = torch.compile(EVERY["hardness"], backend="eager")
    query = unit(9, 16, dtype=torch.float32)
    for good in (0.5, 1.0):
        compiled(query, good)
    with pytest.raises(ValueError, match="hardness must be >= 0, got"):
        compiled(query, value)
