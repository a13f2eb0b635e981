"""Shared fixtures: seeds, unit rows, the backends that this machine can run on CPU tensors."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sede_kernels

CPU_BACKENDS = [
    name for name in ("torch", "cpu") if sede_kernels.available_backends()[name] is None
]
#: Floor of a relative error where compiled code multiplies tf32 operands, on a GPU or on the PTX
#: machine (the interpreter multiplies in full): an operand is cut down to 10 bits and so off by up
#: to 2^-10, a product of two by 2^-9, a quotient of two such sums, as similarities are, by 2^-8.
TF32_FLOOR = 2.0**-8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20221)
    np.random.seed(20221)  # the samplers of hosts draw from it
    random.seed(20221)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random rows of unit length."""
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(dtype)
