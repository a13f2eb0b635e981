"""Our own backends as variants."""

from collections.abc import Callable

import torch

from sede_kernels import available_backends

from .case import Case, Inputs, Run, Variant

BACKENDS = ("cpu", "triton", "cuda", "torch")
#: Backends that serve one kind of device only.
DEVICE = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}


def absent_backend(backend: str) -> Callable[[Case, torch.device], str | None]:
    """(case, device) -> why the backend cannot run there, or None."""

    def reason(case: Case, device: torch.device) -> str | None:
        wanted = DEVICE.get(backend, device.type)
        if wanted != device.type:
            return f"runs on {wanted} only"
        return available_backends()[backend]

    return reason


def backend_variants(build: Callable[[str, Case, list[Inputs]], Run]) -> list[Variant]:
    """One variant a backend: ``sede cpu``, ``sede triton``, ``sede cuda``, ``sede torch``."""

    def bound(backend: str) -> Callable[[Case, list[Inputs]], Run]:
        return lambda case, sets: build(backend, case, sets)

    return [Variant(f"sede {name}", "ours", bound(name), absent_backend(name)) for name in BACKENDS]
