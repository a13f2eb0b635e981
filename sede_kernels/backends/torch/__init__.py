"""Backend ``torch``: PyTorch in blocks, on any device, never B x K in memory."""

from typing import Any

from torch import Tensor


def unavailable_reason() -> str | None:
    """Always None: torch is a dependency."""
    return None


def unsupported_reason(op: str, *tensors: Tensor, **options: Any) -> str | None:
    """Always None: every op, dtype and device."""
    return None
