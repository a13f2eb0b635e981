"""A memory bank that the ranks of a process group hold together, K / W slots each."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import check_count
from sede_kernels.sharded_ring import STAMPED, ShardedRing, part_of
from sede_kernels.types import Shard


class ShardedMemoryBank(ShardedRing, MemoryBank):
    """A ``MemoryBank`` of K slots of which each of W ranks holds K / W: the first K % W one more.

    It stands wherever a bank does: ``weighted_info_nce``, ``symmetric_info_nce``, ``bank_lse``,
    ``hardest_negatives``. Queries go to all ranks, each makes one pass over its rows, and the
    partial sums come home; the backward communicates nothing. Every rank stores its own keys, so
    ``enqueue`` communicates nothing either. Indices are those of the whole bank, rank after rank.

    A reduced loss is scaled so that averaged gradients, as of ``DistributedDataParallel``, are
    those of one process on the union of all batches: ``mean`` is W times the sum over this rank's
    rows divided by the row weights of all ranks, ``sum`` is W times the sum here, ``none`` is not
    scaled. In-batch negatives are those of this rank's batch.

    Every rank of the group makes each call, in every step, with no rows where it has none. In
    ``eval()`` mode a rank works alone on its own rows, so that validation on one rank cannot hang;
    so does a loss under ``no_grad``.
    Alone, or without ``torch.distributed`` initialised at construction, it is a ``MemoryBank``.

    Args:
        size: K >= W, the slots of all ranks together.
        dim: D >= 1, length of a key.
        group: process group; None for the default one.
        dtype: as of ``MemoryBank``.
        normalize: as of ``MemoryBank``.
        max_batch: None: the ranks exchange the sizes of their batches first, which the host reads,
            and calls that do not fit each other raise on all ranks. A number: batches are padded to
            it, nothing is read on the host, and more rows raise before any exchange.
        device: of the buffers.

    Attributes:
        rows, row_scale, ids, ptr, count, rejected: of this rank, as of ``MemoryBank``.
        stamps: (K_r,) int64, when each row was stored; 0 for never.
        step: () int64, calls of ``enqueue`` so far.
        dealt_to: () int64, over how many ranks the rows are dealt.
        size: K.

    ``state_dict`` holds DTensors over K rows, for ``torch.distributed.checkpoint``; load them with
    ``load_state_dict`` on every rank. With the same number of ranks each gets its rows back bit for
    bit. With another all rows are dealt anew, oldest first, one rank after the other, so that what
    was stored first is still overwritten first. ``rejected`` then counts the holes that are left.

    Raises:
        ValueError: fewer slots than ranks; use outside the group that it was made for.

    Cost:
        Of a loss: one exchange of the queries, one of E numbers a query for E exponents (none with
        ``unit_length``), one of D + E + 1 numbers a query. Compute of a rank as with a whole bank
        and its own batch: W times the queries, 1 / W of the rows.

    Source:
        Partial softmaxes merge by their log-sum-exps as in split attention; InsightFace's PartialFC
        shards class centres, which need a gradient, in the same way.

    Example:
        >>> bank = ShardedMemoryBank(8, 2)
        >>> bank.enqueue(torch.eye(2), torch.tensor([7, 8]))
        >>> len(bank), bank.size
        (2, 8)
    """

    fixed: ClassVar[Mapping[str, torch.dtype]] = {**MemoryBank.fixed, **STAMPED}

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        group: "dist.ProcessGroup | None" = None,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        max_batch: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        name = "ShardedMemoryBank"
        check_count(name, "size", size, least=1)
        part = part_of(name, size, group, max_batch)
        super().__init__(part.slots, dim, dtype=dtype, normalize=normalize, device=device)
        self._share(part, device)

    @property
    def shard(self) -> Shard:  # type: ignore[override]
        """Which part of the whole is here; without a group in ``eval()`` mode."""
        return self.shard_now()

    def extra_repr(self) -> str:
        """The whole, and which part of it is here."""
        return f"size={self.size}, rank={self.part.rank} of {self.part.world}, " + (
            super().extra_repr().replace("size", "slots", 1)
        )

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor | None = None, *, backend: str = "auto") -> None:
        """Write this rank's keys (N, D) into its slots; nothing is sent. See ``MemoryBank``.

        Call it on every rank in every step, with no keys where there are none: the steps are
        counted, so that a resumed run forgets in the same order.
        """
        before = self.ptr.clone()
        super().enqueue(keys, ids, backend=backend)
        self._stamp(before, keys.shape[0])

    @torch.no_grad()
    def fetch(self, stored: Tensor, indices: Tensor) -> Tensor:
        """What the ranks keep beside the rows of these indices; every rank calls it alike.

        For banks of fragment sets: the means are searched here with ``hardest_negatives``, and the
        sets that were found come from the ranks that hold them.

        Args:
            stored: (K_r, ...) of this rank, slot by slot: the rows or lengths of a ``FragmentBank``
                of K_r sets that stores whenever this bank does.
            indices: (B, k) int64 as ``hardest_negatives`` gives them, any B; -1 for none.

        Returns:
            (B, k, ...) in the dtype of ``stored``, 0 where the index is -1; in ``eval()`` mode also
            for indices of other ranks. No gradient.

        Raises:
            ValueError: ``stored`` does not have this rank's slots; indices that are no (B, k) int64
                or beyond the slots of all ranks; another process group.

        Cost:
            Each row goes from its holder to who asked. Three exchanges; the host reads the counts.
        """
        slots = self.rows.shape[0]
        if not isinstance(stored, Tensor) or stored.ndim < 1 or stored.shape[0] != slots:
            came = tuple(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
            raise ValueError(
                f"ShardedMemoryBank.fetch: stored must have the {slots} slots of this rank first, "
                f"got {came}."
            )
        (found,) = self._fetched("ShardedMemoryBank.fetch", indices, stored)
        return found

    def glance(self) -> None:
        """None: the group is to be looked at too."""

    def view(self) -> BankView:
        """Rows, scales and ids as they stand, and which part of the whole they are.

        Raises:
            ValueError: the process group is not the one that the bank was made for.
        """
        view = super().view()
        if not torch.compiler.is_compiling():
            self._check_group()
        return view._replace(shard=self.shard)
