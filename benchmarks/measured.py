"""Which package a run measures: its files, its backends, and those that are missing."""

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

import sede_kernels
from sede_kernels import available_backends
from sede_kernels.backends import cpu

from . import machine
from .ours import BACKENDS, DEVICE


def files() -> tuple[str, str | None]:
    """The package's file and that of its native module, or None where that does not load."""
    try:
        native = importlib.import_module("sede_kernels._cpu").__file__
    except ImportError:
        native = None
    return str(sede_kernels.__file__), native


def _for_device(device: torch.device) -> list[str]:
    return [name for name in BACKENDS if DEVICE.get(name, device.type) == device.type]


def missing(device: torch.device) -> dict[str, str]:
    """Backends that this version has for the device and this process lacks, with the reasons."""
    found = {}
    for name in _for_device(device):
        reason = available_backends()[name]
        if reason is None or (name == "cpu" and sys.platform == "win32"):
            continue
        spec = importlib.util.find_spec(f"sede_kernels.backends.{name}")
        if spec is not None and spec.origin is not None:
            found[name] = reason
    return found


def header(device: torch.device) -> str:
    """What a run prints first: files, version, commit, backends."""
    package, native = files()
    here = [name for name in _for_device(device) if available_backends()[name] is None]
    lines = [
        f"measured: {package}",
        f"          version {sede_kernels.__version__}, commit {machine.git_state()}",
        f"native:   {native} ({cpu.describe()})" if native else "native:   none",
        f"backends: {', '.join(f'sede {name}' for name in here)}",
    ]
    lines += [f"missing:  sede {name}: {reason}" for name, reason in missing(device).items()]
    return "\n".join(lines)


def check_allowed(names: Iterable[str]) -> None:
    """Refuse ``--allow-missing`` for what is no backend.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        if name not in DEVICE:
            raise ValueError(f"--allow-missing must be one of {', '.join(DEVICE)}, got {name!r}")


def refuse_gaps(
    device: torch.device, allowed: Iterable[str], implementations: Collection[str] = ()
) -> None:
    """Refuse a comparison without a backend that this machine could have, or with a foreign one.

    Args:
        device: of the run.
        allowed: backends that may be missing.
        implementations: the only ones to be measured; empty for all.

    Raises:
        ValueError: one is missing, or the native module is of another installation; the sentence
            says which, why, and what to do.
    """
    package, native = files()
    if native is not None and Path(native).parent != Path(package).parent:
        raise ValueError(
            f"the package is {package} and its native module is {native}, of another installation: "
            "reinstall the package, or unset PYTHONPATH"
        )
    for name, reason in missing(device).items():
        if name in allowed or (implementations and f"sede {name}" not in implementations):
            continue
        raise ValueError(
            f"backend {name!r} is missing: {reason}. Without it the comparison shows a slower "
            f"backend as ours; install it, or measure without it by `--allow-missing {name}`."
        )
