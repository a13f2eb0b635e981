"""ALBEF and BLIP retrieval: both queues with ids, soft targets, any batch size."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import gather_keys
from sede_kernels.functional import bank_lse, weighted_info_nce
from sede_kernels.integrations._banked import Ids, ids_tensor, training_call
from sede_kernels.integrations.moco import load_columns

NAME = "RetrievalQueues"


class RetrievalQueues(nn.Module):
    """Twin of the queues of ``ALBEF`` and ``BLIP_Retrieval`` and of their contrastive loss.

    ``loss_ita`` is the host's: soft targets over batch and queue, uniform over the entries of the
    same id, mixed with the momentum model's own softmax by ``alpha``; the mean of both directions.
    Where the host counts the random columns of an unfilled queue as negatives, only stored
    features count here. In training each call stores the momentum features after the loss.

    Args:
        embed_dim: D.
        queue_size: K; the batch size need not divide it.
        dtype: of the queues, see ``MemoryBank``.

    Cost:
        Two reads of each queue (one more with ``alpha`` > 0), no (B, K) matrix, no copy.

    Source:
        Li et al. 2021 (ALBEF), Li et al. 2022 (BLIP).

    Example:
        >>> queues = RetrievalQueues(embed_dim=4, queue_size=6)
        >>> feat, ids = torch.eye(4).requires_grad_(), torch.arange(4)
        >>> loss = queues(feat, feat, feat.detach(), feat.detach(), ids, temp=0.07)
        >>> queues.image_queue.shape, queues.idx_queue.tolist()
        (torch.Size([4, 6]), [[0, 1, 2, 3, -100, -100]])
    """

    def __init__(
        self,
        embed_dim: int = 256,
        queue_size: int = 65536,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.image_bank = MemoryBank(queue_size, embed_dim, dtype=dtype)
        self.text_bank = MemoryBank(queue_size, embed_dim, dtype=dtype)

    @property
    def image_queue(self) -> Tensor:
        """(D, K) view of the stored image features; int8 features unscaled."""
        return self.image_bank.rows.t()

    @property
    def text_queue(self) -> Tensor:
        """(D, K) view of the stored text features."""
        return self.text_bank.rows.t()

    @property
    def idx_queue(self) -> Tensor:
        """(1, K) ids, -100 where the slot is empty, as the hosts write it."""
        ids = self.image_bank.ids
        return ids.masked_fill(ids == -1, -100).unsqueeze(0)

    @property
    def queue_ptr(self) -> Tensor:
        """(1,) next column to write; ``ptr_queue`` in BLIP."""
        return self.image_bank.ptr.view(1)

    def forward(
        self,
        image_feat: Tensor,
        text_feat: Tensor,
        image_feat_m: Tensor,
        text_feat_m: Tensor,
        idx: Ids,
        *,
        temp: float | Tensor,
        alpha: float = 0.0,
    ) -> Tensor:
        """``loss_ita``.

        Args:
            image_feat: (B, D) unit features of the trained model.
            text_feat: (B, D).
            image_feat_m: (B, D) unit features of the momentum model.
            text_feat_m: (B, D).
            idx: (B,) or (B, 1) image ids >= 0; entries of one id are positives of each other.
            temp: temperature, the model's learnable parameter or a number.
            alpha: share of the momentum model's softmax in the targets, in [0, 1].

        Returns:
            Scalar. Gradients reach both features and ``temp``.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"{NAME}: alpha must be in [0, 1], got {alpha}.")
        flat = torch.as_tensor(idx, device=image_feat.device).flatten()
        ids = ids_tensor(NAME, flat, image_feat.shape[0], image_feat.device)
        image_m, text_m = image_feat_m.detach(), text_feat_m.detach()
        sides = (
            (image_feat, image_m, text_m, self.text_bank),
            (text_feat, text_m, image_m, self.image_bank),
        )
        losses = [self._one_way(*side, ids, temp, alpha) for side in sides]
        if training_call(self, image_feat, text_feat):
            self.dequeue_and_enqueue(image_m, text_m, flat)
        return (losses[0] + losses[1]) / 2

    @staticmethod
    def _one_way(
        query: Tensor,
        query_m: Tensor,
        key_m: Tensor,
        bank: MemoryBank,
        ids: Tensor | None,
        temp: float | Tensor,
        alpha: float,
    ) -> Tensor:
        hard = weighted_info_nce(
            query,
            key_m,
            bank,
            temperature=temp,
            query_ids=ids,
            false_negatives="positive",
            in_batch_negatives=True,
        )
        loss = hard if isinstance(hard, Tensor) else hard[0]
        if not alpha:
            return loss
        inverse = 1.0 / torch.as_tensor(temp, dtype=loss.dtype, device=loss.device)
        # d lse / d query = inverse x mean key under the softmax: the target's expected key.
        with torch.enable_grad():
            probe = query_m.detach().requires_grad_()
            total = _lse_of_all(probe, key_m, bank, inverse.detach())
            (slope,) = torch.autograd.grad(total.sum(), probe)
        expected = (query.to(loss.dtype) * (slope / inverse.detach()).to(loss.dtype)).sum(dim=1)
        soft = (_lse_of_all(query, key_m, bank, inverse) - inverse * expected).mean()
        return (1.0 - alpha) * loss + alpha * soft

    @torch.no_grad()
    def dequeue_and_enqueue(self, image_feat_m: Tensor, text_feat_m: Tensor, idx: Ids) -> None:
        """Store a batch of all ranks, any size; ``forward`` does so itself in training."""
        flat = torch.as_tensor(idx, device=image_feat_m.device).flatten()
        ids = ids_tensor(NAME, flat, image_feat_m.shape[0], image_feat_m.device)
        image, every = gather_keys(image_feat_m, ids)
        text, _ = gather_keys(text_feat_m)
        self.image_bank.enqueue(image, every)
        self.text_bank.enqueue(text, every)

    def load_host(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over the queues of an ALBEF or BLIP checkpoint; -100 slots stay empty.

        Args:
            state: the checkpoint's state dictionary.
            prefix: what stands before the names.
        """
        pointer = "ptr_queue" if f"{prefix}ptr_queue" in state else "queue_ptr"
        names = [prefix + n for n in ("image_queue", "text_queue", "idx_queue", pointer)]
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"load_host: the checkpoint has no {missing[0]}; set prefix.")
        image, text, idx, ptr = (state[name] for name in names)
        ids = idx.flatten().to(torch.int64)
        ids = ids.masked_fill(ids < 0, -1)
        load_columns(self.image_bank, image, ids, int(ptr))
        load_columns(self.text_bank, text, ids, int(ptr))


def _lse_of_all(query: Tensor, key: Tensor, bank: MemoryBank, inverse: Tensor) -> Tensor:
    """(B,) log-sum-exp over every key of the batch and every stored one."""
    stored = bank_lse(query, bank, inverse.reshape(1))[:, 0]
    batch = torch.logsumexp(inverse * (query @ key.t()).to(inverse.dtype), dim=1)
    return torch.logaddexp(batch, stored)
