"""Views whose sign waits to be applied (imaginary parts of conjugates) count with their sign."""

import pytest
import torch
from torch import Tensor

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    attention_erase,
    bank_lse,
    cross_attention_pairs,
    cross_attention_similarity,
    hardest_negatives,
    score_info_nce,
    weighted_info_nce,
)
from tests.conftest import unit


def negated(*shape: int) -> Tensor:
    """Random numbers of which memory holds the opposite."""
    view = torch.complex(torch.zeros(shape), unit(*shape, dtype=torch.float32)).conj().imag
    assert view.is_neg()
    return view


def loss(x: Tensor, y: Tensor, backend: str) -> Tensor:
    found = weighted_info_nce(
        x, y, y.flip(0), hardness=2.0, in_batch_negatives=True, backend=backend
    )
    assert isinstance(found, Tensor)
    return found


def stored(x: Tensor, y: Tensor, backend: str) -> Tensor:
    bank = MemoryBank(5, x.shape[-1])
    bank.enqueue(x, backend=backend)
    return bank.rows


def stored_sets(x: Tensor, y: Tensor, backend: str) -> Tensor:
    bank = FragmentBank(5, 3, x.shape[-1])
    bank.enqueue(x, backend=backend)
    return bank.rows


CALLS = {
    "weighted_info_nce": (loss, (4, 6)),
    "score_info_nce": (lambda x, y, b: score_info_nce(x, y[:, 0], backend=b), (4, 6)),
    "bank_lse": (lambda x, y, b: bank_lse(x, y, 3.0, backend=b), (4, 6)),
    "hardest_negatives": (lambda x, y, b: hardest_negatives(x, y, backend=b)[0], (4, 6)),
    "attention_erase": (lambda x, y, b: attention_erase(x, backend=b)[0], (4, 6)),
    "similarity": (lambda x, y, b: cross_attention_similarity(x, y, backend=b), (4, 3, 6)),
    "pairs": (lambda x, y, b: cross_attention_pairs(x, y, backend=b), (4, 2, 3, 6)),
    "enqueue": (stored, (4, 6)),
    "enqueue of sets": (stored_sets, (4, 3, 6)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_sign_that_waits_counts(name, backend) -> None:
    call, shape = CALLS[name]
    x, y = negated(*shape), negated(*shape)
    assert torch.equal(call(x, y, backend), call(x.resolve_neg(), y.resolve_neg(), backend))


def test_an_incoming_gradient_counts_with_its_sign(backend) -> None:
    query = unit(4, 6, dtype=torch.float32).requires_grad_()
    rows = weighted_info_nce(
        query, unit(4, 6, dtype=torch.float32), unit(9, 6, dtype=torch.float32),
        reduction="none", backend=backend,
    )  # fmt: skip
    grad = negated(4)
    got, want = (
        torch.autograd.grad(rows, query, one, retain_graph=True)[0]
        for one in (grad, grad.resolve_neg())
    )
    assert torch.equal(got, want)
