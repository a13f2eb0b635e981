"""Plain MoCo loops: a queue for any batch size, with the loss on it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import ANONYMOUS, EMPTY, MemoryBank
from sede_kernels.checks import check_count
from sede_kernels.functional import hardest_negatives, weighted_info_nce
from sede_kernels.integrations._banked import make_bank, store_of_all
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_beside,
    check_features,
    check_real,
    check_stored,
    check_switch,
    described,
    ids_tensor,
    integers,
)
from sede_kernels.sharded_bank import ShardedMemoryBank

NAME = "MoCoQueue"


class Columns(NamedTuple):
    """A (D, K) queue of a checkpoint, checked against the bank that is to hold it."""

    bank: MemoryBank
    columns: Tensor  # (D, K)
    ids: Tensor  # (K,), negative where the slot is empty
    ptr: int

    @classmethod
    def checked(cls, bank: MemoryBank, columns: Any, ids: Any, ptr: Any) -> "Columns":
        """The same, or one sentence.

        Args:
            bank: (K, D).
            columns: (D, K) unit columns.
            ids: (K,) integers.
            ptr: next slot to write, a number or a tensor of one.
        """
        name, dim = "load_host", bank.rows.shape[1]
        size = whole_size(bank)
        check_features(name, "the queue", columns, (dim, size))
        marks = integers(name, "the ids of the queue", ids, size, bank.rows.device)
        start = int(ptr) if isinstance(ptr, Tensor) and ptr.numel() == 1 else ptr
        start = check_count(name, "the pointer of the queue", start)
        if start >= size:
            raise ValueError(f"{name}: the pointer of the queue must be below {size}, got {start}.")
        return cls(bank, columns, marks, start)

    @torch.no_grad()
    def load(self) -> None:
        """Fill the bank slot by slot."""
        bank, rows = self.bank, self.bank.rows
        if isinstance(bank, ShardedMemoryBank):  # a whole one first, whose rows are then dealt
            whole = MemoryBank(bank.size, rows.shape[1], dtype=rows.dtype, device=rows.device)
            self._replace(bank=whole).load()
            bank.load_state_dict(whole.state_dict())
            return
        bank.clear()
        dtype = rows.dtype if rows.is_floating_point() else torch.float32
        bank.enqueue(self.columns.t().to(device=rows.device, dtype=dtype))
        # A column that the bank refused stays empty.
        bank.ids.copy_(self.ids.masked_fill(bank.ids == EMPTY, EMPTY))
        bank.count.copy_((bank.ids != EMPTY).sum())
        bank.ptr.fill_(self.ptr)


def whole_size(bank: MemoryBank) -> int:
    """K, of all ranks together where they share the bank."""
    return bank.size if isinstance(bank, ShardedMemoryBank) else bank.rows.shape[0]


def entry(state: Mapping[str, Tensor], name: str, prefix: str) -> Tensor:
    """A tensor of a checkpoint, or one sentence."""
    if not isinstance(state, Mapping):
        raise TypeError(f"load_host: state must be a state dictionary, got {described(state)}.")
    if prefix + name not in state:
        raise ValueError(
            f"load_host: the checkpoint has no {prefix}{name}; pass the prefix of its names."
        )
    return state[prefix + name]


class MoCoQueue(nn.Module):
    """Twin of MoCo's ``queue``, ``queue_ptr`` and ``_dequeue_and_enqueue``, plus the loss.

    Args:
        dim: D, width of the features.
        K: number of keys; any batch size goes in.
        T: temperature.
        dtype: of the stored keys, see ``MemoryBank``.
        hardness: beta >= 0 in cosine units.
        sharded: all ranks hold the queue together, see ``ShardedMemoryBank``; keys are not
            gathered, and ``queue`` is the part of this rank.

    Cost:
        One read of the queue a step; no (B, K) logits, no copy of the queue.

    Source:
        He et al. 2020 (MoCo).

    Example:
        >>> queue = MoCoQueue(dim=4, K=8)
        >>> queue.dequeue_and_enqueue(torch.eye(4)[:3])
        >>> queue.queue.shape, int(queue.queue_ptr)
        (torch.Size([4, 8]), 3)
    """

    def __init__(
        self,
        dim: int = 128,
        K: int = 65536,
        T: float = 0.07,
        *,
        dtype: torch.dtype = torch.float32,
        hardness: float = 0.0,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        size = check_count(NAME, "K", K, least=1)
        _, width = check_bank_settings(NAME, size, dim, dtype, names=("K", "dim", "dtype"))
        self.temperature = check_real(NAME, "T", T, above=0.0)
        self.hardness = check_real(NAME, "hardness", hardness, least=0.0)
        shared = check_switch(NAME, "sharded", sharded)
        self.bank = make_bank(size, width, dtype, shared)

    @property
    def queue(self) -> Tensor:
        """(D, K) view of the stored keys, as the host lays them out; int8 keys unscaled."""
        return self.bank.rows.t()

    @property
    def queue_ptr(self) -> Tensor:
        """(1,) view of the next column to write."""
        return self.bank.ptr.view(1)

    def forward(self, q: Tensor, k: Tensor, ids: Ids | None = None) -> Tensor:
        """Mean cross entropy of [q.k | q.queue] / T with the key as the right class.

        Args:
            q: (B, D) unit queries; longer ones may overflow in a kernel that relies on it.
            k: (B, D) unit keys of the momentum encoder.
            ids: (B,) what each row is of; stored keys of the same id are no negatives.

        Returns:
            Scalar. While the queue is empty there is nothing to tell apart and the loss is 0.
        """
        check_features(NAME, "q", q, (None, self.bank.rows.shape[1]))
        check_features(NAME, "k", k, tuple(q.shape))
        check_beside(NAME, "q", q, self.bank)
        known = ids_tensor(NAME, ids, q.shape[0], q.device)
        return weighted_info_nce(
            q,
            k,
            self.bank,
            temperature=self.temperature,
            hardness=self.hardness,
            query_ids=known,
            unit_length=True,
        )

    @torch.no_grad()
    def accuracy(
        self, q: Tensor, k: Tensor, ids: Ids | None = None, *, topk: Sequence[int] = (1, 5)
    ) -> list[Tensor]:
        """The host's Acc@k of the (K + 1)-way choice: the key beats all but k - 1 stored keys.

        Call it beside the loss, before the keys are stored. A key that ties with the k-th stored
        one, or a NaN, counts as beaten, so that a collapsed encoder scores nothing.

        Args:
            q: (B, D) unit queries.
            k: (B, D) unit keys.
            ids: (B,), as in ``forward``.
            topk: the ks, each >= 1.

        Returns:
            A (1,) tensor in percent for each k, as the host's ``accuracy`` returns them.

        Cost:
            One read of the queue, of the largest k numbers a row.
        """
        check_features(NAME, "q", q, (None, self.bank.rows.shape[1]))
        check_features(NAME, "k", k, tuple(q.shape))
        check_beside(NAME, "q", q, self.bank)
        places = [check_count(NAME, "each of topk", place, least=1) for place in topk]
        known = ids_tensor(NAME, ids, q.shape[0], q.device)
        most = min(max(places, default=1), whole_size(self.bank))
        hardest, _ = hardest_negatives(q, self.bank, most, query_ids=known)
        hardest = F.pad(hardest, (0, max(places, default=1) - most), value=-torch.inf)
        right = (q * k).sum(dim=1).to(hardest.dtype)
        return [
            (right > hardest[:, place - 1]).float().mean().mul(100.0).reshape(1) for place in places
        ]

    @torch.no_grad()
    def dequeue_and_enqueue(self, keys: Tensor, ids: Ids | None = None) -> None:
        """Store keys (N, D) of all ranks, any N; call it in training, after the loss.

        Args:
            keys: (N, D) of this rank; gathered where ``torch.distributed`` runs, unless sharded.
            ids: (N,) integers >= 0, or None.
        """
        check_stored(NAME, [("keys", keys, self.bank)])
        known = ids_tensor(NAME, ids, keys.shape[0], keys.device)
        store_of_all(self.bank, keys, known)

    def load_host(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over ``queue`` and ``queue_ptr`` of a MoCo checkpoint.

        Args:
            state: the checkpoint's state dictionary.
            prefix: what stands before the names, ``module.`` in MoCo's own checkpoints.
        """
        columns, ptr = (entry(state, name, prefix) for name in ("queue", "queue_ptr"))
        anonymous = torch.full((whole_size(self.bank),), ANONYMOUS)
        Columns.checked(self.bank, columns, anonymous, ptr).load()
