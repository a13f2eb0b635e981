"""Numbers as tensors beside the query."""

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
        return torch.tensor(values, dtype=dtype, device="cpu")
    parts = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append(value.to(dtype).reshape(1))
        elif compiling:
            parts.append(like.new_ones((1,), dtype=dtype) * value)
        else:
            parts.append(like.new_full((1,), value, dtype=dtype))
    return torch.cat(parts)
