"""Numbers as tensors beside the query, and work that autocast must not narrow."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sede_kernels.types import result_dtype

Scalar = float | Tensor


def constants(values: list[Scalar], like: Tensor) -> Tensor:
    """[E] on the device of ``like``; numbers are filled in, never copied from the host."""
    dtype = result_dtype(like)
    numbers = not any(isinstance(value, Tensor) for value in values)
    # A compiled function keeps a number that changes as an input only through arithmetic.
    compiling = torch.compiler.is_compiling()
    if numbers and like.device.type == "cpu" and not compiling:
        return torch.tensor(values, dtype=dtype)
    parts = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append(value.to(dtype).reshape(1))
        elif compiling:
            parts.append(like.new_ones((1,), dtype=dtype) * value)
        else:
            parts.append(like.new_full((1,), value, dtype=dtype))
    return torch.cat(parts)


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast switched off, on the devices that have one."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
