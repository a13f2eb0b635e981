"""What the twins share: when a call may write to its banks, and how it reads them."""

import torch
from torch import Tensor, nn

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import gather_keys, gather_with_grad
from sede_kernels.sharded_bank import ShardedMemoryBank

__all__ = ["gather_with_grad", "make_bank", "snapshot", "store_of_all", "training_call"]


def make_bank(size: int, dim: int, dtype: torch.dtype, sharded: bool) -> MemoryBank:
    """A bank of this rank, or one that all ranks hold together."""
    kind = ShardedMemoryBank if sharded else MemoryBank
    return kind(size, dim, dtype=dtype)


def store_of_all(bank: MemoryBank, keys: Tensor, ids: Tensor | None) -> None:
    """Store the keys of all ranks, or those of this rank in its part of a sharded bank."""
    if not isinstance(bank, ShardedMemoryBank):
        keys, ids = gather_keys(keys, ids)
    bank.enqueue(keys, ids)


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
