"""Plain MoCo loops: a queue for any batch size, with the loss on it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import gather_keys
from sede_kernels.functional import weighted_info_nce
from sede_kernels.integrations._banked import Ids, ids_tensor


def load_columns(bank: MemoryBank, columns: Tensor, ids: Tensor, ptr: int) -> None:
    """Fill a bank from a (D, K) queue of a checkpoint, slot by slot.

    Args:
        bank: (K, D).
        columns: (D, K) unit columns.
        ids: (K,), negative where the slot is empty.
        ptr: next slot to write.
    """
    size, dim = bank.rows.shape
    if columns.shape != (dim, size):
        raise ValueError(
            f"load_host: the queue must be ({dim}, {size}) for this bank, "
            f"got {tuple(columns.shape)}."
        )
    bank.clear()
    dtype = bank.rows.dtype if bank.rows.is_floating_point() else torch.float32
    bank.enqueue(columns.t().to(device=bank.rows.device, dtype=dtype))
    bank.ids.copy_(ids)
    bank.count.copy_((bank.ids != -1).sum())
    bank.ptr.fill_(ptr)


class MoCoQueue(nn.Module):
    """Twin of MoCo's ``queue``, ``queue_ptr`` and ``_dequeue_and_enqueue``, plus the loss.

    Args:
        dim: D, width of the features.
        K: number of keys; any batch size goes in.
        T: temperature.
        dtype: of the stored keys, see ``MemoryBank``.
        hardness: beta >= 0 in cosine units.

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
    ) -> None:
        super().__init__()
        if not T > 0:
            raise ValueError(f"MoCoQueue: T must be > 0, got {T}.")
        self.bank = MemoryBank(K, dim, dtype=dtype)
        self.temperature = float(T)
        self.hardness = hardness

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
        known = ids_tensor("MoCoQueue", ids, q.shape[0], q.device)
        loss = weighted_info_nce(
            q,
            k,
            self.bank,
            temperature=self.temperature,
            hardness=self.hardness,
            query_ids=known,
            unit_length=True,
        )
        return loss if isinstance(loss, Tensor) else loss[0]

    @torch.no_grad()
    def dequeue_and_enqueue(self, keys: Tensor, ids: Ids | None = None) -> None:
        """Store keys (N, D) of all ranks, any N; call it in training, after the loss.

        Args:
            keys: (N, D) of this rank; gathered where ``torch.distributed`` runs.
            ids: (N,) integers >= 0, or None.
        """
        known = ids_tensor("MoCoQueue", ids, keys.shape[0], keys.device)
        self.bank.enqueue(*gather_keys(keys, known))

    def load_host(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over ``queue`` and ``queue_ptr`` of a MoCo checkpoint.

        Args:
            state: the checkpoint's state dictionary.
            prefix: what stands before the names, ``module.`` in MoCo's own checkpoints.
        """
        missing = [n for n in ("queue", "queue_ptr") if prefix + n not in state]
        if missing:
            raise ValueError(
                f"load_host: the checkpoint has no {prefix}{missing[0]}; is prefix={prefix!r} "
                "right?"
            )
        columns = state[prefix + "queue"]
        anonymous = torch.full((columns.shape[-1],), -2)
        load_columns(self.bank, columns, anonymous, int(state[prefix + "queue_ptr"]))
