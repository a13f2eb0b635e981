"""What the twins share: when a call may write to its banks, ids in any form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sede_kernels.distributed import gather_with_grad

__all__ = ["Ids", "gather_with_grad", "ids_tensor", "snapshot", "training_call"]

Ids = Tensor | Sequence[int]


def training_call(module: nn.Module, *outputs: Tensor) -> bool:
    """Whether this is a training step: training mode, and gradients are wanted.

    The second half matters: validation in SCAN and VSE++ calls the criterion without ever putting
    it into evaluation mode, but encodes under ``no_grad``.
    """
    wanted = torch.is_grad_enabled() and any(output.requires_grad for output in outputs)
    return module.training and wanted


@torch.library.custom_op("sede::snapshot", mutates_args=())
def snapshot(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in ``dtype`` of what a bank holds now, for a product whose gradient needs it.

    The bank is written to before the backward pass. A compiler may compute a plain copy again
    there, from the new contents; the output of an op that it cannot see into it keeps.
    """
    return stored.to(dtype, copy=True)


@snapshot.register_fake
def _(stored: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(stored, dtype=dtype)


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
