"""Products that autocast must not narrow."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast switched off, on the devices that have one."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the dtype of the two, whatever autocast says."""
    with full_precision(left.device.type):
        return left @ right
