"""Upstream gradients of any strides, and many at once, give the gradients of the specification."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sede_kernels as sede
from tests.conftest import unit

IDS = torch.tensor([0, 1, 1, 2, 3])


def banked(x: Tensor, backend: str) -> Tensor:
    bank, positive = x.detach().roll(1, 1), x.flip(0)
    return sede.weighted_info_nce(
        x, positive, bank, temperature=0.5, hardness=2.0, reduction="none", backend=backend
    )


def batched(x: Tensor, backend: str) -> Tensor:
    return sede.weighted_info_nce(
        x, x.roll(1, 1), x.detach().flip(1), temperature=0.5, hardness=2.0, query_ids=IDS,
        false_negatives="positive", in_batch_negatives=True, reduction="none", backend=backend,
    )  # fmt: skip


def by_scalars(x: Tensor, backend: str) -> Tensor:
    return sede.weighted_info_nce(
        x.detach(), x.detach().flip(0), x.detach().roll(1, 1), temperature=x.square().mean(),
        hardness=x.abs().sum(), reduction="none", backend=backend,
    )  # fmt: skip


def symmetric(x: Tensor, backend: str) -> Tensor:
    key, bank = x.flip(0), x.detach().roll(1, 1)
    return sede.symmetric_info_nce(
        x, key, key, x, bank, bank, temperature=0.5, in_batch_negatives=True, reduction="none",
        backend=backend,
    )  # fmt: skip


def scored(x: Tensor, backend: str) -> Tensor:
    return sede.score_info_nce(x, temperature=0.5, hardness=2.0, reduction="none", backend=backend)


def similarity(x: Tensor, backend: str) -> Tensor:
    return sede.cross_attention_similarity(x.reshape(5, 2, 3), x.flip(0)[:4].reshape(4, 2, 3),
                                           erase="mean", backend=backend)  # fmt: skip


CALLS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "banked": banked,
    "batched": batched,
    "scalars": by_scalars,
    "symmetric": symmetric,
    "scored": scored,
    "bank_lse": lambda x, b: sede.bank_lse(x, x.detach().flip(0), [1.0, 3.0], backend=b),
    "hardest": lambda x, b: sede.hardest_negatives(x, x.detach().roll(1, 1), 3, backend=b)[0],
    "erase": lambda x, b: sede.attention_erase(x.exp(), backend=b)[0],
    "similarity": similarity,
    "pairs": lambda x, b: sede.cross_attention_pairs(
        x.reshape(5, 1, 2, 3), x.roll(1).reshape(5, 1, 2, 3), backend=b
    ),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "column of many": lambda g: torch.stack([g, -g, 2 * g], -1)[..., 0],
    "every other": lambda g: g.repeat_interleave(2, 0)[::2],
    "transposed": lambda g: g.mT.contiguous().mT if g.ndim > 1 else g,
    "expanded": lambda g: g[:1].expand(g.shape),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_may_have_any_strides(name, backend) -> None:
    x = unit(5, 6, dtype=torch.float32).requires_grad_()
    wide = x.detach().double().requires_grad_()
    got, want = CALLS[name](x, backend), CALLS[name](wide, "reference")
    for view in GRADIENTS.values():
        upstream = view(torch.randn_like(want).float())
        (found,) = torch.autograd.grad(got, x, upstream, retain_graph=True)
        (expected,) = torch.autograd.grad(want, wide, upstream.double(), retain_graph=True)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CALLS)
def test_many_gradients_at_once_are_those_one_by_one(name, backend) -> None:
    x = unit(5, 6, dtype=torch.float32).requires_grad_()
    wide = x.detach().double().requires_grad_()
    got, want = CALLS[name](x, backend), CALLS[name](wide, "reference")
    upstream = torch.randn(3, *want.shape)
    (found,) = torch.autograd.grad(got, x, upstream, is_grads_batched=True)
    expected = [
        torch.autograd.grad(want, wide, one.double(), retain_graph=True)[0] for one in upstream
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_losses_that_are_stacked_as_columns(backend) -> None:
    """What a stack hands back to each loss is a column of the gradient: every other number."""
    query, key, other = (unit(5, 6, dtype=torch.float64) for _ in range(3))

    def gradient(backend: str) -> Tensor:
        x = query.clone().requires_grad_()
        rows = [
            sede.weighted_info_nce(x, one, other, reduction="none", backend=backend)
            for one in (key, other.flip(0))
        ]
        return torch.autograd.grad(torch.stack(rows, 1).amax(1).sum(), x)[0]

    torch.testing.assert_close(gradient(backend), gradient("reference"), rtol=1e-9, atol=1e-9)
