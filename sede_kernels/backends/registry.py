"""Which backend serves an op: explicit requests are met or raise, ``auto`` takes the first able."""

import importlib
import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from sede_kernels.backends import order as measured
from sede_kernels.errors import BackendUnavailableError

#: Backend name -> package below ``sede_kernels.backends``. ``reference`` has no ops: the functional
#: layer calls ``sede_kernels.reference`` itself, so that the specification stays plain autograd.
PACKAGES = {"torch": "torch", "cpu": "cpu", "triton": "triton", "cuda": "cuda"}
NAMES = ("auto", "reference", *PACKAGES)

#: Op -> file that holds it in every backend package.
FILES = {
    "bank_lse": "bank_lse",
    "bank_lse_pair": "bank_lse",
    "batch_lse": "batch_lse",
    "batch_lse_kept": "batch_lse",
    "batch_lse_backward": "batch_lse",
    "info_nce": "info_nce",
    "info_nce_backward": "info_nce",
    "score_info_nce": "score_info_nce",
    "score_info_nce_backward": "score_info_nce",
    "hardest": "hardest",
    "block_scores": "ranks",
    "count_below": "ranks",
    "enqueue": "enqueue",
    "enqueue_fragments": "enqueue_fragments",
    "erase": "erase",
    "erase_backward": "erase",
    "cross_attention": "cross_attention",
    "cross_attention_kept": "cross_attention",
    "cross_attention_backward": "cross_attention",
    "cross_attention_pairs": "cross_attention_pairs",
    "cross_attention_pairs_backward": "cross_attention_pairs",
    "late_interaction": "late_interaction",
    "late_interaction_kept": "late_interaction",
    "late_interaction_backward": "late_interaction",
    "late_interaction_pairs": "late_interaction",
    "late_interaction_pairs_backward": "late_interaction",
}

_AUTO_ORDER = {"cpu": ("cpu", "torch")}
_PLAIN = ("torch",)
_warned_of: set[str] = set()


@cache
def _package(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(f"sede_kernels.backends.{PACKAGES[name]}")
        # A folder left without its __init__ imports as an empty namespace package.
        return module if module.__file__ else None
    except ModuleNotFoundError as error:
        if error.name == f"sede_kernels.backends.{PACKAGES[name]}":
            return None
        raise


@cache
def _function(name: str, op: str) -> Callable[..., Any] | None:
    package = _package(name)
    path = f"sede_kernels.backends.{PACKAGES[name]}.{FILES[op]}"
    if package is None:
        return None
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            return None
        raise
    return getattr(module, op, None)


def unavailable_reason(name: str) -> str | None:
    """Why backend ``name`` cannot be used in this process, or None when it can."""
    if name == "reference":
        return None
    package = _package(name)
    if package is None:
        return "not part of this version"
    reason: str | None = package.unavailable_reason()
    return reason


def _refusal(
    name: str, op: str, tensors: tuple[Tensor, ...], options: dict[str, Any]
) -> str | None:
    """Why ``name`` cannot serve this very call, or None when it can."""
    reason = unavailable_reason(name)
    if reason is not None:
        return reason
    if _function(name, op) is None:
        return f"has no {op} kernel"
    package = _package(name)
    refused: str | None = package.unsupported_reason(op, *tensors, **options) if package else None
    return refused


def default_backend() -> str:
    """The backend that ``backend="auto"`` starts from: ``SEDE_BACKEND``, or ``auto`` itself."""
    return os.environ.get("SEDE_BACKEND", "auto") or "auto"


def requested(backend: str) -> str:
    """Resolve ``auto`` through ``SEDE_BACKEND`` and check the name.

    Raises:
        ValueError: for a name that is not one of ``NAMES``.
    """
    name = default_backend() if backend == "auto" else backend
    if name not in NAMES:
        source = "SEDE_BACKEND" if backend == "auto" else "backend"
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}.")
    return name


def serving(op: str, backend: str, *tensors: Tensor, **options: Any) -> str:
    """Name of the backend that serves ``op`` on these tensors.

    Args:
        op: key of ``FILES``.
        backend: one of ``NAMES`` except ``reference``.
        tensors: the tensors that decide (device, dtype); the first one's device picks the order.
        options: further facts a backend may refuse on.

    Raises:
        BackendUnavailableError: an explicit backend cannot serve the call.
        ValueError: unknown backend name.
    """
    name = requested(backend)
    if name == "reference" and op.startswith("enqueue"):
        name = "torch"  # the ring write has no other plain form: it changes buffers in place
    if name == "reference":
        raise ValueError(f"{op}: the reference has no ops; call sede_kernels.functional instead.")
    if name == "auto":
        device = tensors[0].device.type
        order = measured.of(op, tensors[0]) if device == "cuda" else _AUTO_ORDER.get(device, _PLAIN)
        for candidate in order:
            if _refusal(candidate, op, tensors, options) is None:
                name = candidate
                break
        else:
            raise BackendUnavailableError(f"{op}: no backend can serve this call.\n{_report()}")
        if name == "torch" and name != order[0]:  # compiled kernels are no step down
            _warn_once(order[0], name)
    else:
        reason = _refusal(name, op, tensors, options)
        if reason is not None:
            raise BackendUnavailableError(
                f"{op}: backend {name!r} was asked for but {reason}. Backends here:\n{_report()}"
            )
    return name


def resolve(op: str, backend: str, *tensors: Tensor, **options: Any) -> Callable[..., Any]:
    """The function of the backend that serves ``op`` on these tensors; see ``serving``."""
    return function_of(serving(op, backend, *tensors, **options), op)


def function_of(name: str, op: str) -> Callable[..., Any]:
    """The function of ``op`` in the backend of this name, which is able.

    Raises:
        BackendUnavailableError: it has none.
    """
    function = _function(name, op)
    if function is None:
        raise BackendUnavailableError(f"{op}: backend {name!r} has no {op} kernel.")
    return function


def serves_natively(backend: str) -> bool:
    """Whether backend ``cpu`` is the one that takes a call on CPU tensors, where it is able."""
    return backend == "cpu" or (backend == "auto" and default_backend() in ("auto", "cpu"))


def native_look(op: str, function: str) -> Callable[..., Any] | None:
    """The native function that says at one look whether the arguments of ``op`` fit, or None.

    Args:
        op: key of ``FILES``.
        function: its name, in the file of that op in backend ``cpu``.
    """
    return None if unavailable_reason("cpu") is not None else native_function(op, function)


@cache
def native_function(op: str, function: str) -> Callable[..., Any] | None:
    """As ``native_look``, for a caller who has looked and found backend ``cpu`` able."""
    module = importlib.import_module(f"sede_kernels.backends.{PACKAGES['cpu']}.{FILES[op]}")
    return getattr(module, function, None)


def _warn_once(first: str, name: str) -> None:
    """Say once in each process that ``auto`` has to do without its first choice, and what to do."""
    reason = unavailable_reason(first)
    if reason is None or first in _warned_of:
        return
    _warned_of.add(first)
    warnings.warn(
        f"sede_kernels: backend {name!r} serves, which is slower and takes more memory than "
        f"{first!r}: {reason}. Install what is missing, or set SEDE_BACKEND={name} to choose "
        f"{name!r} without this warning.",
        RuntimeWarning,
        stacklevel=4,
    )


def _report() -> str:
    lines = []
    for name in PACKAGES:
        reason = unavailable_reason(name)
        lines.append(f"  {name}: {'available' if reason is None else reason}")
    return "\n".join(lines)


def available_backends() -> dict[str, str | None]:
    """Every backend with None when it can be used here, else the reason it cannot.

    Returns:
        dict: name -> None (usable) or one clause that says what is missing.

    Example:
        >>> available_backends()["torch"] is None
        True
    """
    return {name: unavailable_reason(name) for name in ("reference", *PACKAGES)}
