"""pytorch-metric-learning: a weighted NT-Xent loss and a cross-batch memory that can be saved."""

# mypy: disable-error-code="import-untyped, import-not-found"

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.checks import check_count
from sede_kernels.functional import bank_lse
from sede_kernels.integrations._banked import training_call
from sede_kernels.integrations._checks import check_features, check_real, described
from sede_kernels.integrations._memory_pairs import in_memory, segment_lse, takes_no_reference

try:
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils import common_functions as c_f
    from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("pytorch_metric_learning"):
        raise
    raise ImportError(
        "sede_kernels.integrations.metric_learning builds on pytorch-metric-learning; "
        "run pip install 'sede-kernels[metric-learning]'."
    ) from error


NAME = "CrossBatchMemory"


class MemoryPairs(NamedTuple):
    """Positive pairs one by one; the negatives are all stored rows of another label.

    A 4-tuple like the host's (a1, p, a2, n), whose negatives nobody had to write down.
    """

    a1: Tensor
    p: Tensor
    a2: Tensor
    n: Tensor


class WeightedNTXentLoss(losses.BaseMetricLossFunction):  # type: ignore[misc]
    """NT-Xent with harder negatives weighing more; the host's ``NTXentLoss`` at hardness 0.

    A positive pair (a, p) costs ``log(1 + sum_n w_n e^{(s_an - s_ap) / temperature})`` over the
    negatives n of the anchor, ``w = n softmax(hardness s)``, detached. Works with the host's
    distances, reducers, regularizers, miners and trainers. Memory is O(pairs), where the host
    builds positives x negatives.

    Args:
        temperature: tau > 0.
        hardness: beta >= 0, in units of the distance's similarity (cosine by default).
        kwargs: ``distance``, ``reducer``, ``embedding_regularizer``, ... of the host.

    Cost:
        Against ``CrossBatchMemory`` of this module (without a miner): one read of the memory.

    Example:
        >>> loss = WeightedNTXentLoss(temperature=0.1, hardness=2.0)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1])).ndim
        0
    """

    def __init__(self, temperature: float = 0.07, hardness: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        name = "WeightedNTXentLoss"
        self.temperature = check_real(name, "temperature", temperature, above=0.0)
        self.hardness = check_real(name, "hardness", hardness, least=0.0)
        self.add_to_recordable_attributes(list_of_names=["temperature", "hardness"], is_stat=False)

    def get_default_distance(self) -> Any:
        """Cosine similarity, as the host's NT-Xent."""
        return CosineSimilarity()

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """The host's hook: the losses of the positive pairs and their indices."""
        if isinstance(indices_tuple, MemoryPairs):
            a1, p = indices_tuple.a1, indices_tuple.p
            if not len(a1):
                return self._nothing()
            positive, negatives = self._against_memory(
                embeddings, labels, ref_emb, ref_labels, a1, p
            )
        else:
            c_f.labels_or_indices_tuple_required(labels, indices_tuple)
            a1, p, a2, n = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
            if not (len(a1) and len(a2)):
                return self._nothing()
            similarity = self.distance(embeddings, ref_emb)
            if not self.distance.is_inverted:
                similarity = -similarity
            positive = similarity[a1, p]
            negatives = self._log_negatives(similarity[a2, n], a2, len(embeddings))
        # A pair whose anchor has no negatives costs nothing.
        alone = negatives[a1] == -torch.inf
        gap = negatives[a1].masked_fill(alone, 0.0) - positive / self.temperature
        rows = F.softplus(gap).masked_fill(alone, 0.0).to(embeddings.dtype)  # the host's dtype
        return {"loss": {"losses": rows, "indices": (a1, p), "reduction_type": "pos_pair"}}

    def _nothing(self) -> dict[str, Any]:
        zero: dict[str, Any] = self.zero_losses()
        return zero

    def _log_negatives(self, similarity: Tensor, anchor: Tensor, rows: int) -> Tensor:
        """(rows,) log of the weighted sum over each anchor's negatives, from a list of pairs."""
        logits = similarity / self.temperature
        if self.hardness:
            hard = self.hardness * similarity.detach()
            count = torch.bincount(anchor, minlength=rows).to(hard.dtype)
            logits = logits + hard + (count.log() - segment_lse(hard, anchor, rows))[anchor]
        return segment_lse(logits, anchor, rows)

    def _against_memory(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
        a1: Tensor,
        p: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Similarity of each positive pair and (B,) log of the weighted sum over the memory."""
        if labels is None or ref_labels is None:
            raise ValueError("WeightedNTXentLoss: the cross-batch memory needs labels.")
        query = F.normalize(embeddings, dim=1)
        memory = F.normalize(ref_emb, dim=1)
        ids, known = _as_ids(labels, ref_labels)
        inverse = 1.0 / self.temperature
        if self.hardness:
            lse = bank_lse(query, memory, inverse + self.hardness, query_ids=ids, bank_ids=known)
            share = bank_lse(
                query.detach(), memory, [self.hardness, 0.0], query_ids=ids, bank_ids=known
            )
            # Detached weights: the gradient is O / tau, the kernel returns (1 / tau + beta) O.
            none = lse.detach() == -torch.inf
            lse, share = lse.masked_fill(none, 0.0), share.masked_fill(none.unsqueeze(1), 0.0)
            factor = inverse / (inverse + self.hardness)
            negatives = lse.detach() + (lse - lse.detach()) * factor + share[:, 1] - share[:, 0]
            negatives = negatives.masked_fill(none, -torch.inf)
        else:
            negatives = bank_lse(query, memory, inverse, query_ids=ids, bank_ids=known)
        return (query[a1] * memory[p]).sum(dim=1), negatives


class CrossBatchMemory(losses.CrossBatchMemory):  # type: ignore[misc]
    """Twin of the host's ``CrossBatchMemory`` whose state survives and which takes any loss.

    Differences: ``queue_idx`` and ``has_been_filled`` are saved and restored; no list of allowed
    losses (one that takes no ``ref_emb`` is refused at construction); given pairs and triplets
    point at rows of the batch wherever these were stored (the host takes them for rows of the
    memory), and those whose row was not stored are left out; a batch may be larger than the memory
    (its last rows stay); in evaluation mode, and where nothing carries a gradient, nothing is
    stored; a row that is not finite is never stored; with ``WeightedNTXentLoss`` on the cosine
    similarity and no miner the memory is read once instead of listing B x K pairs.

    Args:
        loss: any loss of the host that takes ``ref_emb``.
        embedding_size: D.
        memory_size: K.
        miner: a tuple miner of the host, or None.

    Attributes:
        ptr: () int64, next row to write; the host's ``queue_idx`` reads and sets it.
        count: () int64, rows filled; the host's ``has_been_filled`` reads and sets it.
    """

    keeps_buffers_local = True  # of DDP's broadcast, see ``keep_banks_local``

    embedding_memory: Tensor
    label_memory: Tensor
    ptr: Tensor
    count: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(loss, nn.Module):
            raise TypeError(f"{NAME}: loss must be a loss of the host, got {described(loss)}.")
        if miner is not None and not callable(miner):
            raise TypeError(f"{NAME}: miner must be None or a miner, got {described(miner)}.")
        if takes_no_reference(loss):
            raise ValueError(
                f"{NAME}: {type(loss).__name__} takes no ref_emb, so it cannot compare with a "
                "memory; use a loss of pairs or triplets."
            )
        super().__init__(
            loss,
            check_count(NAME, "embedding_size", embedding_size, least=1),
            check_count(NAME, "memory_size", memory_size, least=1),
            miner,
            **kwargs,
        )

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """Every loss that takes ``ref_emb`` is welcome, whatever its name."""

    @property
    def queue_idx(self) -> int:
        """Next row to write; reads the device, and is 0 on the meta device."""
        return 0 if self.ptr.is_meta else int(self.ptr)

    @queue_idx.setter
    def queue_idx(self, value: int) -> None:
        self.ptr.fill_(value)
        self.count.copy_(torch.where(self.count == self.memory_size, self.count, self.ptr))

    @property
    def has_been_filled(self) -> bool:
        """Whether every row was written; reads the device."""
        return not self.count.is_meta and bool(self.count == self.memory_size)

    @has_been_filled.setter
    def has_been_filled(self, value: bool) -> None:
        self.count.copy_(torch.full_like(self.ptr, self.memory_size) if value else self.ptr)

    def reset_queue(self) -> None:
        """Empty the memory; the host's hook, called at construction too."""
        for name in ("ptr", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        super().reset_queue()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Empty the memory in place, after ``to_empty`` for example."""
        for buffer in (self.embedding_memory, self.label_memory, self.ptr, self.count):
            buffer.zero_()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Version 0.1.0 kept the position as Python numbers beside the tensors.
        old = state.pop(prefix + "_extra_state", None)
        if old is not None:
            position = int(old["queue_idx"])
            count = self.memory_size if old["has_been_filled"] else position
            state[prefix + "ptr"], state[prefix + "count"] = (
                torch.tensor(value, dtype=torch.int64) for value in (position, count)
            )
        faults = []
        for name, most in (("ptr", self.memory_size - 1), ("count", self.memory_size)):
            value = state.get(prefix + name)
            if not isinstance(value, Tensor) or value.is_meta or value.numel() != 1:
                continue  # torch says what is wrong, if anything
            if not 0 <= int(value) <= most:
                faults.append(
                    f"{NAME}: {name} must lie in [0, {most}], got {int(value)}; nothing of the "
                    "memory was loaded."
                )
        if faults:
            arguments[-1].extend(faults)
            return
        super()._load_from_state_dict(state, prefix, *arguments)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of the batch against the memory, the batch itself included.

        Args:
            embeddings: (B, D).
            labels: (B,).
            indices_tuple: pairs or triplets of rows of the batch, added to those of the memory.
            enqueue_mask: (B,) bool; True rows are stored and the others are the anchors.
        """
        self._check(embeddings, labels, indices_tuple, enqueue_mask)
        self.reset_stats()
        labels = c_f.to_device(labels, device=embeddings.device)
        self.embedding_memory = c_f.to_device(
            self.embedding_memory, device=embeddings.device, dtype=embeddings.dtype
        )
        self.label_memory = c_f.to_device(
            self.label_memory, device=embeddings.device, dtype=labels.dtype
        )
        store = training_call(self, embeddings)
        slots = torch.full((len(embeddings),), -1, device=embeddings.device)
        if enqueue_mask is not None:
            kept = embeddings[enqueue_mask], labels[enqueue_mask]
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
            slots = slots[~enqueue_mask]
            if store:
                self._store(*kept)
        elif store:
            slots = self._store(embeddings, labels)
        filled = int(self.count)
        memory, known = self.embedding_memory[:filled], self.label_memory[:filled]
        pairs = self._pairs(embeddings, labels, memory, known, slots, indices_tuple)
        result: Tensor = self.loss(embeddings, labels, pairs, memory, known)
        return result

    def _check(self, embeddings: Tensor, labels: Tensor, indices: Any, mask: Any) -> None:
        """One sentence for what cannot be a batch, before anything is stored."""
        check_features(NAME, "embeddings", embeddings, (None, self.embedding_size))
        rows = len(embeddings)
        if not isinstance(labels, Tensor) or labels.shape != (rows,) or labels.is_complex():
            raise (ValueError if isinstance(labels, Tensor) else TypeError)(
                f"{NAME}: labels must be a tensor ({rows},), one per row, got {described(labels)}."
            )
        if indices is not None and mask is not None:
            raise ValueError(
                f"{NAME}: indices_tuple and enqueue_mask exclude each other; pass one."
            )
        if indices is not None and (
            not isinstance(indices, tuple | list) or len(indices) not in (3, 4)
        ):
            raise TypeError(
                f"{NAME}: indices_tuple must be 3 or 4 index tensors, got {described(indices)}."
            )
        if mask is not None and (
            not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (rows,)
        ):
            raise ValueError(
                f"{NAME}: enqueue_mask must be bool ({rows},), one per row, got {described(mask)}."
            )

    def _store(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Write the finite rows; the slot of each row, -1 for those that did not stay."""
        finite = torch.where(embeddings.isfinite().all(dim=1))[0]
        total = len(finite)
        skipped = max(0, total - self.memory_size)
        position = (torch.arange(total, device=labels.device) + self.ptr) % self.memory_size
        position[:skipped] = -1
        self.curr_batch_idx = position[skipped:]
        self.embedding_memory[self.curr_batch_idx] = embeddings[finite[skipped:]].detach()
        self.label_memory[self.curr_batch_idx] = labels[finite[skipped:]].detach()
        self.ptr.copy_((self.ptr + total) % self.memory_size)
        self.count.copy_((self.count + total).clamp(max=self.memory_size))
        slots = torch.full((len(embeddings),), -1, device=labels.device)
        slots[finite] = position
        return slots

    def _pairs(
        self,
        embeddings: Tensor,
        labels: Tensor,
        memory: Tensor,
        known: Tensor,
        slots: Tensor,
        given: Any,
    ) -> Any:
        distance = getattr(self.loss, "distance", None)
        plain = self.miner is None and given is None and len(known)
        if plain and isinstance(self.loss, WeightedNTXentLoss) and _is_cosine(distance):
            index = torch.arange(len(known), device=labels.device)
            match = (labels.unsqueeze(1) == known) & (slots.unsqueeze(1) != index)
            a1, p = torch.where(match)
            return MemoryPairs(a1, p, a1[:0], p[:0])
        if self.miner:
            found = self.miner(embeddings, labels, memory, known)
        else:
            found = lmu.get_all_pairs_indices(labels, known)
        keep = slots[found[0]] != found[1]
        own = [part[keep] for part in found[: 2 if len(found) == 4 else 3]]
        found = (*own, *found[len(own) :])
        if given is None:
            return found
        if len(given) == 3 and len(found) == 4:
            given = lmu.convert_to_pairs(given, labels)
        elif len(given) == 4 and len(found) == 3:
            given = lmu.convert_to_triplets(given, labels)
        given = in_memory(given, slots)
        return c_f.concatenate_indices_tuples(found, given)


def _as_ids(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of any dtype and value as ids >= 0 of the kernels, equal where the labels are."""
    every = torch.cat([labels, ref_labels])
    if not every.is_floating_point():
        every = every.to(torch.int64)  # unsigned ones beyond it wrap, and stay apart
    if every.is_floating_point() or every.min() < 0:
        every = torch.unique(every, return_inverse=True)[1]
    return every[: len(labels)], every[len(labels) :]


def _is_cosine(distance: Any) -> bool:
    """The plain cosine similarity, the one that the fused pass computes."""
    return type(distance) is CosineSimilarity and distance.p == 2 and distance.power == 1
