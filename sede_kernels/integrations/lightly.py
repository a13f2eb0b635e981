"""lightly: its NT-Xent loss with a bank that is saved, wraps anywhere and is never copied."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import batches
from sede_kernels.functional import weighted_info_nce
from sede_kernels.integrations._banked import make_bank, store_of_all, training_call
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_features,
    check_real,
    check_stored,
    check_switch,
    ids_tensor,
)

NAME = "NTXentLoss"


class NTXentLoss(nn.Module):
    """Twin of lightly's ``NTXentLoss(temperature, memory_bank_size, gather_distributed)``.

    With a bank the loss is the host's while the bank is full; until then only what was stored
    counts, where the host counts random rows (with nothing stored the loss is 0). Without a bank
    it is the SimCLR loss of the batch. Stored after the loss, in training only.

    Args:
        temperature: tau > 0.
        memory_bank_size: (K, D), or 0 for no bank.
        gather_distributed: store the keys of all ranks, so that all banks are equal; without a
            bank the views of all ranks are negatives, with a gradient, as in the host.
        sharded: all ranks hold the bank together, see ``ShardedMemoryBank``; needs a bank.
        bank_dtype: see ``MemoryBank``.
        hardness: beta >= 0 in cosine units; needs a bank.

    Source:
        Chen et al. 2020 (SimCLR), He et al. 2020 (MoCo).

    Example:
        >>> criterion = NTXentLoss(memory_bank_size=(8, 4))
        >>> loss = criterion(torch.eye(4).requires_grad_(), torch.eye(4))
        >>> len(criterion.memory_bank)
        4
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        bank_dtype: torch.dtype = torch.float32,
        hardness: float = 0.0,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_real(NAME, "temperature", temperature, above=0.0)
        self.gather_distributed = check_switch(NAME, "gather_distributed", gather_distributed)
        if self.gather_distributed and not dist.is_available():
            raise ValueError(
                f"{NAME}: gather_distributed=True needs torch.distributed, which this build of "
                "torch does not have; leave it out."
            )
        self.hardness = check_real(NAME, "hardness", hardness, least=0.0)
        shared = check_switch(NAME, "sharded", sharded)
        size, width = self._size(memory_bank_size, bank_dtype)
        self.memory_bank: MemoryBank | None = None
        if size:
            self.memory_bank = make_bank(size, width, bank_dtype, shared)
        elif hardness or shared:
            asked = "sharded" if shared else "hardness"
            raise ValueError(f"{NAME}: {asked} needs a bank; pass memory_bank_size=(K, D).")

    @staticmethod
    def _size(given: int | Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
        """(K, D), or zeros for no bank."""
        if isinstance(given, int) and not isinstance(given, bool) and given == 0:
            given = (0, 1)
        if not isinstance(given, tuple | list | torch.Size) or len(given) != 2:
            raise ValueError(
                f"{NAME}: memory_bank_size must be (K, D), or 0 for no bank, got {given!r}."
            )
        return check_bank_settings(
            NAME,
            given[0],
            given[1],
            dtype,
            names=("K of memory_bank_size", "D of memory_bank_size", "bank_dtype"),
        )

    def forward(self, out0: Tensor, out1: Tensor, ids: Ids | None = None) -> Tensor:
        """Mean loss.

        Args:
            out0: (B, D) first views, the queries; scaled to unit length here.
            out1: (B, D) second views, the keys.
            ids: (B,) what each row is of; stored rows of the same id are no negatives.

        Returns:
            Scalar.
        """
        check_features(NAME, "out0", out0, (None, None))
        check_features(NAME, "out1", out1, (None, None))
        if out0.shape != out1.shape:
            raise ValueError(
                f"{NAME}: out0 and out1 must both be (B, D), got {tuple(out0.shape)} and "
                f"{tuple(out1.shape)}."
            )
        check_stored(NAME, [("out1", out1, self.memory_bank)])
        training = training_call(self, out0)
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        known = ids_tensor(NAME, ids, out0.shape[0], out0.device)
        if self.memory_bank is None:
            return self._in_batch(out0, out1, known)
        loss = weighted_info_nce(
            out0,
            out1,
            self.memory_bank,
            temperature=self.temperature,
            hardness=self.hardness,
            query_ids=known,
            unit_length=True,
        )
        if training:
            keys = out1.detach()
            if self.gather_distributed:
                store_of_all(self.memory_bank, keys, known)
            else:
                self.memory_bank.enqueue(keys, known)
        return loss

    def _in_batch(self, out0: Tensor, out1: Tensor, ids: Tensor | None) -> Tensor:
        """Both views of all other rows as negatives, with ``gather_distributed`` of all ranks."""
        half, offset, total, world = out0.shape[0], 0, out0.shape[0], 1
        every0, every1, known = out0, out1, ids
        if self.gather_distributed:
            ranks = batches(out0, ids, name=NAME)
            offset, total, world = ranks.offset, ranks.total, len(ranks.sizes)
            every0, every1 = ranks.gather(out0), ranks.gather(out1)
            known = ids if ids is None else ranks.gather(ids)
        logits = torch.cat([out0, out1]) @ torch.cat([every0, every1]).t() / self.temperature
        index = torch.arange(total, device=out0.device)
        own = index[offset : offset + half]
        hidden = torch.cat([own, own + total]).unsqueeze(1) == torch.cat([index, index + total])
        target = torch.cat([own + total, own])
        if ids is not None and known is not None:
            same = ids.repeat(2).unsqueeze(1) == known.repeat(2)
            hidden = same.scatter(1, target.unsqueeze(1), False)
        rows = F.cross_entropy(logits.masked_fill(hidden, -torch.inf), target, reduction="sum")
        # The mean of equal batches; of ragged ones what DDP averages to the mean over all rows.
        return rows * world / (2 * max(total, 1))
