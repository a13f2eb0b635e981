"""Tensors without plain elements at strides, which no kernel reads: refused in one sentence."""

import torch
from torch import Tensor

#: Subclasses that plain tensors beside them do not mix with, and what to do.
_WRAPPERS = {
    "DTensor": "pass its .to_local(), or .full_tensor()",
    "MaskedTensor": "pass its .get_data(), and leave the masked rows out",
}


def is_dense(tensor: Tensor) -> bool:
    """Whether elements lie at strides: not sparse, nested, quantized, distributed or masked."""
    return (
        not tensor.is_nested
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and type(tensor).__name__ not in _WRAPPERS
    )


def check_dense(name: str, argument: str, tensor: Tensor) -> None:
    """A tensor that ``is_dense``.

    Raises:
        TypeError: one sentence that says what came and how to convert it.
    """
    if is_dense(tensor):
        return
    kind = type(tensor).__name__
    if kind in _WRAPPERS:
        what, remedy = f"a {kind}", _WRAPPERS[kind]
    elif tensor.is_nested:
        what, remedy = "a nested tensor", "pad it"
    elif tensor.is_quantized:
        what, remedy = "a quantized tensor", "convert it with .dequantize()"
    else:
        what, remedy = f"the layout {tensor.layout}", "convert it with .to_dense()"
    raise TypeError(f"{name}: {argument} must be a dense tensor, got {what}; {remedy}.")


def alike(first: object, second: object) -> bool:
    """Whether both are dense tensors of one class, shape, dtype and device: fit for one use."""
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and type(first) is type(second)
        and is_dense(first)
        and is_dense(second)
        and first.shape == second.shape
        and first.dtype == second.dtype
        and first.device == second.device
    )
