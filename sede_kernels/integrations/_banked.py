"""What the twins share: when a call may write to its banks, ids in any form, warm-up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sede_kernels.distributed import gather_with_grad

__all__ = ["BankedLoss", "Ids", "gather_with_grad", "ids_tensor", "training_call"]

Ids = Tensor | Sequence[int]


def training_call(module: nn.Module, *outputs: Tensor) -> bool:
    """Whether this is a training step: training mode, and gradients are wanted.

    The second half matters: validation in SCAN and VSE++ calls the criterion without ever putting
    it into evaluation mode, but encodes under ``no_grad``.
    """
    wanted = torch.is_grad_enabled() and any(output.requires_grad for output in outputs)
    return module.training and wanted


def ids_tensor(name: str, ids: Ids | None, rows: int, device: torch.device) -> Tensor | None:
    """Ids (rows,) as int64 on the device; lists and tuples of data loaders are welcome."""
    if ids is None:
        return None
    found = torch.as_tensor(ids, device=device)
    if found.dtype.is_floating_point or found.dtype == torch.bool:
        raise TypeError(f"{name}: ids must be integers, one a row, got {found.dtype}.")
    if found.shape != (rows,):
        raise ValueError(f"{name}: ids must be ({rows},), one a row, got {tuple(found.shape)}.")
    return found.to(torch.int64)


class BankedLoss(nn.Module):
    """A loss with banks: they are buffers, and join the loss after ``start_step`` enqueues.

    Args:
        start_step: enqueues before the banks' entries count as negatives (warm-up); >= 0.
    """

    def __init__(self, start_step: int = 0) -> None:
        super().__init__()
        if start_step < 0:
            raise ValueError(f"{type(self).__name__}: start_step must be >= 0, got {start_step}.")
        self.start_step = start_step
        self.steps = 0

    def get_extra_state(self) -> int:
        """Enqueues so far, so that a resumed run knows whether its warm-up is over."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Restore the number of enqueues."""
        self.steps = int(state)

    @property
    def warm(self) -> bool:
        """Whether the banks take part in the loss."""
        return self.steps >= self.start_step
