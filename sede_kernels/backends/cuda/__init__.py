"""Backend ``cuda``: kernels compiled ahead, for NVIDIA GPUs of compute capability 8.0 and newer.

They need no Triton and no CUDA toolkit where they run: the module ``sede_kernels._cuda`` holds
their machine code and opens the driver when it is first asked for one. ``emulate`` is for tests: a
driver that plays a GPU on CPU tensors.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native

_OLDEST_CAPABILITY = (8, 0)
_DTYPES = (*_native.DTYPE_CODES, torch.int64)


def emulate(watch: Callable[[list[Tensor]], None] | None) -> None:
    """Accept CPU tensors; None ends it.

    Args:
        watch: gets the tensors that the next launches may reach, before each call.
    """
    _native.set_watch(watch)


@cache
def _device_reason(index: int) -> str | None:
    """Why the kernels cannot run on that device, or None."""
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    with torch.cuda.device(index):
        return _native.module().unavailable_reason() or None


def unavailable_reason() -> str | None:
    """Why the kernels cannot be used, or None."""
    reason = _native.missing_reason()
    if reason is not None or _native.emulating():
        return reason
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    return _device_reason(torch.cuda.current_device())


def unsupported_reason(op: str, *tensors: Tensor, **options: Any) -> str | None:
    """Why this call cannot be served (device or dtype), or None."""
    for tensor in tensors:
        if tensor.device.type != ("cpu" if _native.emulating() else "cuda"):
            return f"{op} got a tensor on {tensor.device}; this backend takes CUDA tensors"
        if tensor.dtype not in _DTYPES:
            return f"{op} has no kernel for {tensor.dtype}"
    if not _native.emulating() and tensors:
        return _device_reason(tensors[0].device.index)
    return None


def describe() -> str | None:
    """What the kernels were compiled for; None without them."""
    if _native.missing_reason() is not None:
        return None
    return f"compiled for {_native.module().architectures().replace(';', ', ')}; not run on a GPU"
