"""A bank of fragment sets that the ranks of a process group hold together, K / W sets each."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.checks import check_count
from sede_kernels.fragment_bank import FragmentBank
from sede_kernels.sharded_ring import STAMPED, ShardedRing, part_of


class ShardedFragmentBank(ShardedRing, FragmentBank):
    """A ``FragmentBank`` of K sets of which each of W ranks holds K / W: the first K % W one more.

    Every rank stores its own sets, so ``enqueue`` communicates nothing. Which sets a query is
    compared with, a search of their means tells: keep those in a ``ShardedMemoryBank`` of the same
    size that stores whenever this one does, ask it with ``hardest_negatives``, and ``fetch`` what
    was found from the ranks that hold it.

    Every rank calls ``fetch`` and ``enqueue`` alike, in every step, with no rows where it has none.
    In ``eval()`` mode a rank works alone on its own sets, and indices of others give empty ones.
    Alone, or without ``torch.distributed`` initialised at construction, it is a ``FragmentBank``.

    Args:
        size: K >= W, the sets of all ranks together.
        max_length: L >= 1, most fragments a set.
        dim: D >= 1.
        group: process group; None for the default one.
        dtype: as of ``FragmentBank``.
        device: of the buffers.

    Attributes:
        rows, lengths, ids, ptr, count, rejected: of this rank, as of ``FragmentBank``.
        stamps, step, dealt_to, size: as of ``ShardedMemoryBank``, and so is the state dict.

    Raises:
        ValueError: fewer sets than ranks; use outside the group that it was made for.

    Cost:
        Of ``fetch``: each set goes from its holder to who asked, B k L D numbers.

    Example:
        >>> bank = ShardedFragmentBank(4, 3, 2)
        >>> bank.enqueue(torch.ones(2, 2, 2), torch.tensor([2, 1]))
        >>> sets, lengths = bank.fetch(torch.tensor([[1, -1]]))
        >>> sets.shape, lengths.tolist()
        (torch.Size([1, 2, 3, 2]), [[1, 0]])
    """

    fixed: ClassVar[Mapping[str, torch.dtype]] = {**FragmentBank.fixed, **STAMPED}

    def __init__(
        self,
        size: int,
        max_length: int,
        dim: int,
        *,
        group: "dist.ProcessGroup | None" = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        name = "ShardedFragmentBank"
        check_count(name, "size", size, least=1)
        part = part_of(name, size, group, None)
        super().__init__(part.slots, max_length, dim, dtype=dtype, device=device)
        self._share(part, device)

    def extra_repr(self) -> str:
        """The whole, and which part of it is here."""
        return f"size={self.size}, rank={self.part.rank} of {self.part.world}, " + (
            super().extra_repr().replace("size", "slots", 1)
        )

    @torch.no_grad()
    def enqueue(
        self,
        keys: Tensor,
        lengths: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        """Write this rank's sets into its slots; nothing is sent. See ``FragmentBank``."""
        before = self.ptr.clone()
        super().enqueue(keys, lengths, ids, backend=backend)
        self._stamp(before, keys.shape[0])

    @torch.no_grad()
    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The sets of these indices among all K, and their lengths; every rank calls it alike.

        Args:
            indices: (B, k) int64 as ``hardest_negatives`` gives them, any B; -1 for none.

        Returns:
            (B, k, L, D) in the dtype of the bank and (B, k) int64, 0 where the index is -1.

        Raises:
            ValueError: indices that are no (B, k) int64 or beyond the sets of all ranks; another
                process group.
        """
        sets, lengths = self._fetched("ShardedFragmentBank.fetch", indices, self.rows, self.lengths)
        return sets, lengths
