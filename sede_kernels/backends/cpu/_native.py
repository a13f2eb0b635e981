"""The native module: loading it, its thread pool, and how tensors are handed over."""

import ctypes
import importlib
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from sede_kernels.backends import fork

#: DType of csrc/kernels/api.h.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int8: 4,
}
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


def module() -> ModuleType:
    """The loaded module."""
    loaded = _import()
    if isinstance(loaded, str):
        raise RuntimeError(f"cpu backend: {loaded}.")
    return loaded


def matrix(tensor: Tensor) -> Matrix:
    """A matrix of any strides, as csrc/bind_cpu.cpp takes it."""
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


def address(tensor: Tensor | None) -> int:
    """Address of a contiguous tensor, or 0."""
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in ``dtype`` and contiguous; hold on to it while its address is in use."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def compute_dtype(query: Tensor) -> torch.dtype:
    """fp64 for fp64 queries, else fp32: the dtype of every floating result."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32
