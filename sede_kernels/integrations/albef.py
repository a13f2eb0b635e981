"""ALBEF and BLIP retrieval: both queues with ids, soft targets, any batch size."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sede_kernels.bank import ANONYMOUS, EMPTY, MemoryBank
from sede_kernels.checks import check_count
from sede_kernels.functional import bank_lse, weighted_info_nce
from sede_kernels.integrations._banked import (
    make_bank,
    mean_of_all,
    store_of_all,
    training_call,
)
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_beside,
    check_features,
    check_real,
    check_stored,
    check_switch,
    check_temperature,
    ids_tensor,
    integers,
)
from sede_kernels.integrations.moco import Columns, entry, whole_size

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
        sharded: all ranks hold the queues together, K / W entries each, see ``ShardedMemoryBank``;
            features are not gathered then, and ``image_queue`` and the others are this rank's part.

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
        sharded: bool = False,
    ) -> None:
        super().__init__()
        shared = check_switch(NAME, "sharded", sharded)
        size = check_count(NAME, "queue_size", queue_size, least=1)
        _, width = check_bank_settings(
            NAME, size, embed_dim, dtype, names=("queue_size", "embed_dim", "dtype")
        )
        self.image_bank = make_bank(size, width, dtype, shared)
        self.text_bank = make_bank(size, width, dtype, shared)

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
        """(1, K) ids, -100 where the slot is empty, as the hosts write it; -2 without an id."""
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
        idx: Ids | None = None,
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
                None as in the pretraining models: a pair is positive of itself alone.
            temp: temperature, the model's learnable parameter or a number.
            alpha: share of the momentum model's softmax in the targets, in [0, 1]; 0 is ALBEF's
                ``distill: False``.

        Returns:
            Scalar. Gradients reach both features and ``temp``.
        """
        if check_real(NAME, "alpha", alpha, least=0.0) > 1.0:
            raise ValueError(f"{NAME}: alpha must be in [0, 1], got {alpha}.")
        check_features(NAME, "image_feat", image_feat, (None, self.image_bank.rows.shape[1]))
        for name, feat in (("text_feat", text_feat), ("image_feat_m", image_feat_m),
                           ("text_feat_m", text_feat_m)):  # fmt: skip
            check_features(NAME, name, feat, tuple(image_feat.shape))
        check_beside(NAME, "image_feat", image_feat, self.image_bank)
        check_temperature(NAME, "temp", temp, image_feat.device)
        ids = self._ids(idx, image_feat)
        image_m, text_m = image_feat_m.detach(), text_feat_m.detach()
        sides = (
            (image_feat, image_m, text_m, self.text_bank),
            (text_feat, text_m, image_m, self.image_bank),
        )
        losses = [self._one_way(*side, ids, temp, alpha) for side in sides]
        if training_call(self, image_feat, text_feat):
            self.dequeue_and_enqueue(image_m, text_m, idx)
        return (losses[0] + losses[1]) / 2

    @staticmethod
    def _ids(idx: Ids | None, features: Tensor) -> Tensor | None:
        """(B,) from (B,) or (B, 1)."""
        return ids_tensor(NAME, idx, features.shape[0], features.device, column=True)

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
        loss = weighted_info_nce(
            query,
            key_m,
            bank,
            temperature=temp,
            query_ids=ids,
            false_negatives="mask" if ids is None else "positive",
            in_batch_negatives=True,
        )
        if not alpha:
            return loss
        inverse = 1.0 / torch.as_tensor(temp, dtype=loss.dtype, device=loss.device)
        # d lse / d query = inverse x mean key under the softmax: the target's expected key.
        # Validation may run in inference mode, where nothing is recorded.
        with torch.inference_mode(False), torch.enable_grad():
            keys, factor = (
                value.clone() if value.is_inference() else value
                for value in (key_m, inverse.detach())
            )
            probe = query_m.detach().to(loss.dtype, copy=True).requires_grad_()
            total = _lse_of_all(probe, keys, bank, factor)
            (slope,) = torch.autograd.grad(total.sum(), probe)
        expected = (query.to(loss.dtype) * (slope / inverse.detach())).sum(dim=1)
        soft = mean_of_all(_lse_of_all(query, key_m, bank, inverse) - inverse * expected, bank)
        return (1.0 - alpha) * loss + alpha * soft

    @torch.no_grad()
    def dequeue_and_enqueue(
        self, image_feat_m: Tensor, text_feat_m: Tensor, idx: Ids | None = None
    ) -> None:
        """Store a batch of all ranks, any size; ``forward`` does so itself in training."""
        features = (
            ("image_feat_m", image_feat_m, self.image_bank),
            ("text_feat_m", text_feat_m, self.text_bank),
        )
        check_stored(NAME, features)
        ids = self._ids(idx, image_feat_m)
        store_of_all(self.image_bank, image_feat_m, ids)
        store_of_all(self.text_bank, text_feat_m, ids)

    def load_host(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over the queues of an ALBEF or BLIP checkpoint; -100 slots stay empty.

        Those of the pretraining models have no ``idx_queue``; all their slots count, without ids.

        Args:
            state: the checkpoint's state dictionary.
            prefix: what stands before the names.
        """
        blip = isinstance(state, Mapping) and f"{prefix}ptr_queue" in state
        names = ("image_queue", "text_queue", "ptr_queue" if blip else "queue_ptr")
        image, text, ptr = (entry(state, name, prefix) for name in names)
        size, device = whole_size(self.image_bank), self.image_bank.ids.device
        ids = torch.full((size,), ANONYMOUS, device=device)
        if f"{prefix}idx_queue" in state:
            idx = entry(state, "idx_queue", prefix)
            flat = idx.flatten() if isinstance(idx, Tensor) else idx
            ids = integers("load_host", "idx_queue", flat, size, device)
            ids = ids.masked_fill(ids < 0, EMPTY)
        parts = [
            Columns.checked(bank, columns, ids, ptr)
            for bank, columns in ((self.image_bank, image), (self.text_bank, text))
        ]
        for part in parts:
            part.load()


def _lse_of_all(query: Tensor, key: Tensor, bank: MemoryBank, inverse: Tensor) -> Tensor:
    """(B,) log-sum-exp over every key of the batch and every stored one."""
    stored = bank_lse(query, bank, inverse.reshape(1))[:, 0]
    dtype = torch.promote_types(query.dtype, key.dtype)  # the momentum model may run in half
    product = query.to(dtype) @ key.to(dtype).t()
    batch = torch.logsumexp(inverse * product.to(inverse.dtype), dim=1)
    return torch.logaddexp(batch, stored)
