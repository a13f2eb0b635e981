"""What the twins share: when a call may write to its banks, and how it reads and saves them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import gather_keys, gather_with_grad
from sede_kernels.ops.sharded import reduced
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.whole_file import atomic_file

__all__ = [
    "BankState",
    "gather_with_grad",
    "make_bank",
    "snapshot",
    "store_of_all",
    "training_call",
]


class BankState:
    """The state of a criterion without the model, for trainers that save the model themselves.

    Args:
        name: of the caller, for messages.
        criterion: a module with banks; one with ``bank_state()`` holds the model too, whose part
            of the state is left out.
    """

    def __init__(self, name: str, criterion: nn.Module) -> None:
        if not isinstance(criterion, nn.Module):
            raise TypeError(
                f"{name}: criterion must be a module with banks, got {criterion!r:.60}."
            )
        self.name = name
        self.criterion = criterion

    def state_dict(self) -> dict[str, Any]:
        """The banks, the warm-up and learnable scalars."""
        own = getattr(self.criterion, "bank_state", self.criterion.state_dict)
        found: dict[str, Any] = own()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        own = getattr(self.criterion, "load_bank_state", self.criterion.load_state_dict)
        own(state)

    def save(self, folder: Path, rank: int) -> None:
        """Into a checkpoint folder, each rank its own file."""
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)  # to memory: errors of the file keep their errno
        with atomic_file(folder / self._file(rank)) as handle:
            handle.write(buffer.getbuffer())

    def load(self, folder: Path, rank: int) -> None:
        """From such a folder; a rank without a file of its own takes that of the first."""
        path = folder / self._file(rank)
        path = path if path.is_file() else folder / self._file(0)
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.name}: {folder} holds no {path.name}; resume from a checkpoint that this "
                "callback has saved, or without the callback."
            )
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @staticmethod
    def _file(rank: int) -> str:
        return f"bank-{rank}.pt" if rank else "bank.pt"


def make_bank(size: int, dim: int, dtype: torch.dtype, sharded: bool) -> MemoryBank:
    """A bank of this rank, or one that all ranks hold together."""
    kind = ShardedMemoryBank if sharded else MemoryBank
    return kind(size, dim, dtype=dtype)


def store_of_all(bank: MemoryBank, keys: Tensor, ids: Tensor | None) -> None:
    """Store the keys of all ranks, or those of this rank in its part of a sharded bank."""
    if not isinstance(bank, ShardedMemoryBank):
        keys, ids = gather_keys(keys, ids)
    bank.enqueue(keys, ids)


def mean_of_all(rows: Tensor, bank: MemoryBank) -> Tensor:
    """The mean of a loss's rows, scaled beside a sharded bank as its losses are."""
    shared = isinstance(bank, ShardedMemoryBank) and torch.is_grad_enabled()
    if not (shared and bank.shard and bank.shard.group):
        return rows.mean()
    loss: Tensor = reduced(rows, 0.0, "mean", bank.shard)[1]
    return loss


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
