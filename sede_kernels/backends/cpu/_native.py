"""The native module: loading it, its thread pool, and how tensors are handed over."""

import ctypes
import importlib
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from sede_kernels.backends import fork
from sede_kernels.backends.cpu import _interface

#: DType of csrc/kernels/api.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int8: 4,
}
_DTYPES = (*DTYPE_CODES, torch.int64, torch.bool)  # csrc/bind_tensors.h
#: Select of csrc/kernels/api.h.
SELECT_CODES = {"keep": 0, "mask": 1, "positive": 2}

#: (address, rows, columns, row stride, column stride, dtype code).
Matrix = tuple[int, int, int, int, int, int]


@cache
def _import() -> ModuleType | str:
    try:
        module = importlib.import_module("sede_kernels._cpu")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "sede_kernels._cpu":
            return "the native module is not built (install with a C++ compiler at hand)"
        return f"the native module does not load: {error}"
    stale = _interface.mismatch(module)
    if stale is not None:
        return stale
    module.set_dtypes(_DTYPES)
    module.set_classes((Tensor, torch.nn.Parameter))
    module.set_exchange(getattr(Tensor, "__dlpack_c_exchange_api__", None))
    module.select_isa(os.environ.get("SEDE_CPU_ISA", ""))
    module.set_thread_count(_torch_function("torch_get_num_threads"))
    module.set_parallel_for(0 if fork.is_child() else _torch_parallel_for())
    return module


def _torch_function(name: str) -> int:
    """Address of a C function of torch, or 0."""
    function = getattr(fork.torch_library(), name, None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function else 0


def _torch_parallel_for() -> int:
    """Address of torch's C function of that name, or 0: then the module uses its own threads."""
    return _torch_function("torch_parallel_for")


def shares_threads() -> bool:
    """Whether the kernels run on torch's threads, not on those of the module's own pool."""
    return _torch_parallel_for() != 0 and not fork.is_child()


def unavailable_reason() -> str | None:
    """Why the module cannot be used, or None.

    Raises:
        ValueError: ``SEDE_CPU_ISA`` names an instruction set that is unknown or not supported.
    """
    module = _import()
    return module if isinstance(module, str) else None


@cache
def module() -> ModuleType:
    """The loaded module."""
    loaded = _import()
    if isinstance(loaded, str):
        raise RuntimeError(f"cpu backend: {loaded}.")
    return loaded


def matrix(tensor: Tensor) -> Matrix:
    """A matrix of any strides on the CPU, as csrc/bind_cpu.cpp takes it."""
    if tensor.device.type != "cpu":
        raise ValueError(f"cpu backend: matrices must be on the CPU, got one on {tensor.device}.")
    rows, columns = tensor.shape
    row_stride, column_stride = tensor.stride()
    return (
        tensor.data_ptr(),
        rows,
        columns,
        row_stride,
        column_stride,
        DTYPE_CODES[tensor.dtype],
    )


def address(name: str, tensor: Tensor | None, dtype: torch.dtype, size: int) -> int:
    """Address of ``size`` contiguous elements, or 0 for None: what native code may rely on.

    Raises:
        ValueError: the tensor is something else; native code would read or write beside it.
    """
    if tensor is None:
        return 0
    if tensor.dtype != dtype or tensor.numel() != size or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"cpu backend: {name} must hold {size} contiguous {dtype}, "
            f"got {tuple(tensor.shape)} {tensor.dtype}{layout}."
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"cpu backend: {name} must be on the CPU, got {tensor.device}.")
    return tensor.data_ptr()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for native code to write, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As ``empty``, zeroed."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def counts(name: str, lengths: Tensor, shape: tuple[int, ...], most: int) -> Tensor:
    """Lengths as contiguous int64 of ``shape``, each in [0, most]: native code counts by them.

    Raises:
        ValueError: a shape or a value is out of range.
    """
    found = lengths.to(torch.int64).contiguous()
    if tuple(found.shape) != shape:
        raise ValueError(f"{name}: lengths must be {shape}, got {tuple(found.shape)}.")
    if found.numel():
        smallest, largest = (int(bound) for bound in found.aminmax())
        if smallest < 0 or largest > most:
            raise ValueError(
                f"{name}: lengths must lie in [0, {most}], got {smallest} to {largest}."
            )
    return found


def contiguous(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in ``dtype`` and contiguous; hold on to it while its address is in use."""
    return None if tensor is None else tensor.to(dtype).contiguous()
