"""Random problems on the GPU and their fp64 answers, for all GPU tests."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import functional
from sede_kernels.backends.triton import emulated

#: Whether the PTX machine plays the GPU, on CPU tensors.
EMULATED = emulated() is not None
DEVICE = torch.device("cpu" if EMULATED else "cuda")
#: Whose kernels are tested: ``triton``, or ``cuda`` where SEDE_GPU_BACKEND says so.
BACKEND = os.environ.get("SEDE_GPU_BACKEND", "triton")
#: The region-word similarities have Triton kernels only.
of_triton = pytest.mark.skipif(BACKEND != "triton", reason="the backend has no such kernel")
#: Streams, graphs, waits and much memory are the driver's and not the kernels'.
needs_driver = pytest.mark.skipif(EMULATED, reason="the PTX machine executes kernels only")
#: A machine that says that it is a GPU (tests/ptx/machine/gpu.py).
_PLAYED = torch.cuda.is_available() and torch.cuda.get_device_name() == "played GPU"


def size(on_gpu: int, on_machine: int) -> int:
    """A size of a problem; the machine is ten thousand times slower than a GPU."""
    return on_machine if EMULATED or _PLAYED else on_gpu


def unit(rows: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(rows, dim, device=DEVICE), dim=1).to(dtype)


def ids(rows: int, low: int = 0, high: int = 1000) -> Tensor:
    return torch.randint(low, high, (rows,), device=DEVICE)


def loss_and_gradients(
    query: Tensor, key: Tensor, bank: Tensor, backend: str, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Row losses and the gradients of their sum."""
    q = query.detach().clone().requires_grad_()
    k = key.detach().clone().requires_grad_()
    rows = functional.weighted_info_nce(q, k, bank, reduction="none", backend=backend, **options)
    grads = torch.autograd.grad(rows.sum(), (q, k))
    return rows.detach(), *grads
