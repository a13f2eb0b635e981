"""Backend ``cpu``: native kernels in C++, built with the package where a compiler was found."""

from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu._native import unavailable_reason as unavailable_reason

_DTYPES = frozenset((*_native.DTYPE_CODES, torch.int64, torch.bool))
# Computed in fp32; fp64 calls are for the torch backend.
_SINGLE_PRECISION_OPS = ("erase", "cross_attention", "late_interaction")


def unsupported_reason(op: str, *tensors: Tensor, **options: Any) -> str | None:
    """Why this call cannot be served (device or dtype), or None."""
    single = op.startswith(_SINGLE_PRECISION_OPS)
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"{op} got a tensor on {tensor.device}; this backend takes CPU tensors"
        dtype = tensor.dtype
        if dtype not in _DTYPES:
            return f"{op} has no kernel for {dtype}"
        if single and dtype == torch.float64:
            return f"{op} has no float64 kernel; backend 'torch' has one"
    return None


def describe() -> str | None:
    """The instruction set in use, those this processor has, and whose threads serve; or None."""
    if unavailable_reason() is not None:
        return None
    module = _native.module()
    pool = "torch's threads" if _native.shares_threads() else "threads of its own"
    return f"{module.isa()} of {', '.join(module.supported_isas())}; {pool}"
