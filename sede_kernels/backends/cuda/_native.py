"""The native module: loading it, and how tensors are handed over."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

#: DType of csrc/cuda/args.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3, torch.int8: 4}
#: Select of csrc/cuda/args.h.
SELECT_CODES = {"keep": 0, "mask": 1, "positive": 2}

_NAME = "sede_kernels._cuda"
_F32, _F64 = 0, 1  # DType of csrc/cuda/args.h
#: (address, rows, columns, row stride, column stride, dtype code).
Matrix = tuple[int, int, int, int, int, int]
Watch = Callable[[list[Tensor]], None]

_watch: Watch | None = None


def set_watch(watch: Watch | None) -> None:
    """See ``emulate`` of this package."""
    global _watch  # noqa: PLW0603
    _watch = watch
    _import.cache_clear()  # the module may be found from here on


def emulating() -> bool:
    """Whether a driver plays a GPU on CPU tensors."""
    return _watch is not None


@cache
def _import() -> ModuleType | str:
    path = os.environ.get("SEDE_CUDA_MODULE")
    try:
        if not path:
            return importlib.import_module(_NAME)
        spec = importlib.util.spec_from_file_location(_NAME, path)
        if spec is None or spec.loader is None:
            return f"SEDE_CUDA_MODULE names no Python module: {path}"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_NAME] = module
        return module
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _NAME:
            return "its kernels are not in this build (install with nvcc and SEDE_BUILD_CUDA=1)"
        return f"its native module does not load: {error}"


def tf32() -> bool:
    """Whether fp32 may be multiplied in tf32: torch's own setting for matrix products."""
    return torch.get_float32_matmul_precision() != "highest"


def missing_reason() -> str | None:
    """Why there is no native module, or None."""
    loaded = _import()
    return loaded if isinstance(loaded, str) else None


def module() -> ModuleType:
    """The loaded module."""
    loaded = _import()
    if isinstance(loaded, str):
        raise RuntimeError(f"cuda backend: {loaded}.")
    return loaded


class Call:
    """The tensors of one call: their addresses, and that they live until it was launched."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tensors: list[Tensor] = []

    def matrix(self, tensor: Tensor) -> Matrix:
        """A matrix of any strides.

        Raises:
            ValueError: it is on another device.
        """
        rows, columns = tensor.shape
        row_stride, column_stride = tensor.stride()
        address = self._keep("a matrix", tensor)
        return address, rows, columns, row_stride, column_stride, DTYPE_CODES[tensor.dtype]

    def sets(self, tensor: Tensor) -> tuple[int, ...]:
        """SetsTuple of csrc/bind_cuda.cpp: matrices in a row, of any strides."""
        address = self._keep("sets", tensor)
        return (address, *tensor.shape, *tensor.stride(), DTYPE_CODES[tensor.dtype])

    def number(self, value: float, at: Tensor | None) -> tuple[float, int, int]:
        """NumberTuple of csrc/bind_cuda.h: a number, or the address of one on the device."""
        if at is None:
            return value, 0, _F32
        if at.dtype != torch.float64:
            return value, self.array("a scalar", at, torch.float32, 1), _F32
        return value, self.array("a scalar", at, torch.float64, 1), _F64

    def array(self, name: str, tensor: Tensor | None, dtype: torch.dtype, size: int) -> int:
        """The address of ``size`` contiguous elements in ``dtype``, copied if need be; 0 for None.

        Raises:
            ValueError: the tensor has another size or is on another device.
        """
        if tensor is None:
            return 0
        if tensor.numel() != size:
            raise ValueError(
                f"cuda backend: {name} must hold {size} elements, got {tuple(tensor.shape)}."
            )
        return self._keep(name, tensor.to(dtype).contiguous())

    def result(self, tensor: Tensor) -> int:
        """The address of memory to write; 0 for an empty one, which was not wanted."""
        return self._keep("a result", tensor) if tensor.numel() else 0

    def launch(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function of the module that needs no scratch memory."""
        with self._on_device() as stream:
            if _watch is not None:
                _watch(self._tensors)
            function(stream, *arguments)

    def run(self, function: Callable[..., int], *arguments: Any) -> None:
        """Call a function of the module on the current stream, with the scratch it asks for."""
        with self._on_device() as stream:
            needed = function(stream, *arguments, 0)
            scratch = torch.empty(max(needed, 1), dtype=torch.uint8, device=self.device)
            if _watch is not None:
                _watch([*self._tensors, scratch])
            function(stream, *arguments, scratch.data_ptr())

    def _keep(self, name: str, tensor: Tensor) -> int:
        if tensor.device != self.device:
            raise ValueError(
                f"cuda backend: {name} must be on {self.device}, got one on {tensor.device}."
            )
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def _on_device(self) -> AbstractContextManager[int]:
        return nullcontext(0) if emulating() else _Stream(self.device)


class _Stream:
    """The device as the current one, and its current stream as the driver names it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._guard = torch.cuda.device(device)

    def __enter__(self) -> int:
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def __exit__(self, *error: Any) -> None:
        self._guard.__exit__(*error)
