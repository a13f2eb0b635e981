"""Backend ``triton``: fused kernels for NVIDIA GPUs of compute capability 8.0 and newer.

Importing this package imports no Triton: the kernels are loaded when the registry first asks for
one. With ``TRITON_INTERPRET=1`` in the environment the same kernels run on CPU tensors in Triton's
interpreter, which is slow and meant for tests. ``emulate`` is the other way for tests: the kernels
are compiled for a GPU, and an active driver of Triton's that the caller has set runs them.
"""

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_OLDEST_CAPABILITY = (8, 0)
#: Of Triton where the compute capability is 10: older ones do not compile every kernel for it.
_OLDEST_FOR_SM_100 = (3, 8)
#: A row of attention lives in the registers of one program.
LONGEST_ERASE_ROW = 4096
#: Fragments of one set: a program holds a whole image-caption pair.
LARGEST_FRAGMENT_SET = 64


@dataclass(frozen=True)
class Emulation:
    """A GPU that is played on CPU tensors: its architecture class and its multiprocessors."""

    architecture: str
    cores: int


_emulation: Emulation | None = None


def emulate(emulation: Emulation | None) -> None:
    """Accept CPU tensors as if they were on this GPU; None ends it.

    For tests. Before the first launch the caller makes a driver Triton's active one that compiles
    for the architecture and runs what was compiled. ``TRITON_INTERPRET`` must not be set.
    """
    global _emulation  # noqa: PLW0603
    _emulation = emulation


def emulated() -> Emulation | None:
    """The GPU that is played here, or None."""
    return _emulation


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def version_pair(version: str) -> tuple[int, int]:
    """Major and minor of a version such as ``3.9.0``."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@cache
def triton_version() -> tuple[int, int]:
    """Major and minor of the installed Triton."""
    return version_pair(importlib.metadata.version("triton"))


def outdated_reason(capability: tuple[int, int]) -> str | None:
    """Why this Triton cannot compile for a GPU that a newer one serves, or None."""
    found = triton_version()
    if capability[0] != 10 or found >= _OLDEST_FOR_SM_100:
        return None
    wanted = ".".join(map(str, _OLDEST_FOR_SM_100))
    return (
        f"Triton {found[0]}.{found[1]} does not compile every kernel for compute capability "
        f"{capability[0]}.{capability[1]} (pip install 'triton>={wanted}')"
    )


@cache
def _outdated_everywhere() -> str | None:
    """The reason where no GPU of this machine can be served, or None."""
    devices = range(torch.cuda.device_count())
    reasons = [outdated_reason(torch.cuda.get_device_capability(n)) for n in devices]
    return reasons[0] if reasons and all(reasons) else None


def unavailable_reason() -> str | None:
    """None when kernels can be compiled or interpreted here, else what is missing."""
    if not _installed():
        return "triton is not installed (pip install 'sede-kernels[triton]', Linux only)"
    if interpreting() or emulated():
        return None
    if torch.version.cuda is None:
        return "this torch was built without CUDA (TRITON_INTERPRET=1 runs the interpreter)"
    if not torch.cuda.is_available():
        return "no CUDA device was found (TRITON_INTERPRET=1 runs the interpreter)"
    return _outdated_everywhere()


def unsupported_reason(op: str, *tensors: Tensor, **options: Any) -> str | None:
    """Why these tensors cannot be served, or None."""
    first = tensors[0]
    if not (interpreting() or emulated()):
        if first.device.type != "cuda":
            return f"it serves CUDA tensors and these are on {first.device}"
        capability = torch.cuda.get_device_capability(first.device)
        if capability < _OLDEST_CAPABILITY:
            return f"it needs compute capability 8.0 and {first.device} has {capability}"
        outdated = outdated_reason(capability)
        if outdated:
            return outdated
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "it computes in float32 and these tensors are float64"
    if op in ("erase", "erase_backward") and first.shape[-1] > LONGEST_ERASE_ROW:
        return f"it erases rows of at most {LONGEST_ERASE_ROW}, got {first.shape[-1]}"
    if op.startswith("cross_attention"):
        fragments = max(tensor.shape[-2] for tensor in tensors)
        if fragments > LARGEST_FRAGMENT_SET:
            return f"it takes sets of at most {LARGEST_FRAGMENT_SET} fragments, got {fragments}"
    return None
