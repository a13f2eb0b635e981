"""Results may be changed in place, as those of plain PyTorch: ``scores /= 2``."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sede_kernels as sede
from tests.conftest import unit
from tests.unit.test_upstream_gradients import CALLS

LATE = {"attention": "max", "aggregate": "sum"}


class Looks(TorchDispatchMode):
    """Sends every call through the dispatcher."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def late(x: Tensor, backend: str, direction: str) -> Tensor:
    regions, words = x.reshape(5, 2, 3), x.flip(0).reshape(5, 2, 3)[:4]
    return sede.cross_attention_similarity(
        regions, words, direction=direction, backend=backend, **LATE
    )


def late_pairs(x: Tensor, backend: str) -> Tensor:
    regions, words = x.reshape(5, 1, 2, 3), x.flip(0).reshape(5, 1, 2, 3)
    return sede.cross_attention_pairs(regions, words, backend=backend, **LATE)


ALL: dict[str, Callable[[Tensor, str], Tensor]] = {
    **CALLS,
    "late t2i": lambda x, b: late(x, b, "t2i"),
    "late i2t": lambda x, b: late(x, b, "i2t"),
    "late pairs": late_pairs,
}


@pytest.mark.parametrize("seen", [False, True], ids=["directly", "dispatched"])
@pytest.mark.parametrize("name", ALL)
def test_a_result_may_be_changed_in_place(name, seen, backend) -> None:
    x = unit(5, 6, dtype=torch.float32).requires_grad_()
    wide = x.detach().double().requires_grad_()
    want = ALL[name](wide, "reference")
    if seen:
        with Looks():
            got = ALL[name](x, backend)
    else:
        got = ALL[name](x, backend)
    got.mul_(3.0)
    got[0] = 0.0
    upstream = torch.randn_like(want)
    scale = torch.full_like(want, 3.0)
    scale[0] = 0.0
    torch.testing.assert_close(got.double(), scale * want, rtol=1e-4, atol=1e-4)
    (found,) = torch.autograd.grad(got, x, upstream.float())
    (expected,) = torch.autograd.grad(want, wide, scale * upstream)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
