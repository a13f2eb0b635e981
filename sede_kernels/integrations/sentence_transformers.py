"""sentence-transformers: its multiple-negatives ranking loss with a bank and ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import check_choice
from sede_kernels.distributed import Batches, batches
from sede_kernels.functional import bank_lse
from sede_kernels.integrations._banked import training_call
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_features,
    check_real,
    check_stored,
    check_switch,
    ids_tensor,
)
from sede_kernels.warmup import WarmUp

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = (None, "in_batch_negatives", "hard_negatives", "all_negatives")
SIMILARITIES = ("cos_sim", "dot_score")
NAME = "MultipleNegativesRankingLoss"
Similarity = Callable[[Tensor, Tensor], Tensor]


class MultipleNegativesRankingLoss(WarmUp):
    """Twin of the host's loss of that name, with a bank of past documents.

    ``loss = -log(e^{scale s+} / sum_d e^{scale s_d + strength sg(s_d)})`` over the documents of
    the batch and of the bank. With an empty bank value and gradients are the host's, for every
    ``hardness_mode``, ``directions`` and ``partition_mode``; the stored documents join
    ``query_to_doc``. In training each call stores its positives after the loss.

    Args:
        model: the SentenceTransformer.
        scale: 1 / temperature.
        similarity_fct: the host's ``util.cos_sim`` (also None) or ``util.dot_score``.
        gather_across_devices: as the host: the batches of all ranks count; all banks are equal.
        directions: as the host; ``query_to_doc`` is among them.
        partition_mode: as the host, ``joint`` or ``per_direction``.
        hardness_mode: as the host; documents of the bank count as in-batch negatives.
        hardness_strength: as the host: >= 0, added to the logits as strength x similarity,
            without a gradient; in cosine units.
        bank_size: positives kept; 0 for no bank.
        dim: D, width of the embeddings; None asks the model.
        bank_dtype: see ``MemoryBank``.
        ids_in_labels: the data set's ``label`` column holds integers >= 0 naming what each row is
            of; rows and stored documents of one id are no negatives of each other.
        start_step: enqueues before the bank takes part.

    Cost:
        The bank is read once, without a B x K matrix.

    Source:
        Henderson et al. 2017; Lan et al. 2025 for the hardness; He et al. 2020 for the queue.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Similarity | None = None,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        bank_size: int = 0,
        dim: int | None = None,
        bank_dtype: torch.dtype = torch.float32,
        ids_in_labels: bool = False,
        start_step: int = 0,
    ) -> None:
        super().__init__(start_step)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{NAME}: model must be a SentenceTransformer, got {model!r:.60}.")
        given = "cos_sim" if similarity_fct is None else similarity_fct
        similarity = getattr(given, "__name__", given)
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"{NAME}: similarity_fct must be util.cos_sim or util.dot_score, "
                f"got {similarity_fct!r}."
            )
        if "query_to_doc" not in directions or not set(directions) <= set(DIRECTIONS):
            raise ValueError(
                f"{NAME}: directions must be some of {', '.join(DIRECTIONS)}, the first among "
                f"them, got {directions!r}."
            )
        same_type = {"query_to_query", "doc_to_doc"} & set(directions)
        if partition_mode != "joint" and (partition_mode != "per_direction" or same_type):
            raise ValueError(
                f"{NAME}: partition_mode must be 'joint', or 'per_direction' without "
                f"query_to_query and doc_to_doc, got {partition_mode!r}."
            )
        check_choice(NAME, "hardness_mode", hardness_mode, HARDNESS_MODES)
        self.model = model
        self.scale = check_real(NAME, "scale", scale, above=0.0)
        self.similarity = similarity
        self.gather_across_devices = check_switch(
            NAME, "gather_across_devices", gather_across_devices
        )
        self.directions = tuple(directions)
        self.partition_mode = partition_mode
        self.hardness_mode = hardness_mode
        self.hardness_strength = check_real(NAME, "hardness_strength", hardness_strength, least=0.0)
        self.ids_in_labels = check_switch(NAME, "ids_in_labels", ids_in_labels)
        self.bank: MemoryBank | None = None
        width = self._width(model) if dim is None and bank_size else dim
        size, width = check_bank_settings(NAME, bank_size, width, bank_dtype)
        if size:
            self.bank = MemoryBank(size, width, dtype=bank_dtype, normalize=False)

    @staticmethod
    def _width(model: nn.Module) -> int:
        for ask in ("get_embedding_dimension", "get_sentence_embedding_dimension"):
            if hasattr(model, ask):
                width = getattr(model, ask)()
                if isinstance(width, int):
                    return width
        raise ValueError(f"{NAME}: the model does not say its width; pass dim.")

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch of (anchor, positive, negative...) columns.

        Args:
            sentence_features: one feature dictionary a column.
            labels: (B,) integers with ``ids_in_labels``, else not read.

        Returns:
            Scalar.
        """
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(columns, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Ids | None = None
    ) -> Tensor:
        """The same from embeddings (B, D), one tensor a column: anchors, positives, negatives."""
        if len(embeddings) < 2:
            raise ValueError(f"{NAME}: needs anchors and positives, got {len(embeddings)} column.")
        query, positive = embeddings[:2]
        check_features(NAME, "sentence_embedding", query, (None, None))
        for column in embeddings:
            check_features(NAME, "sentence_embedding of each column", column, tuple(query.shape))
        check_stored(NAME, [("sentence_embedding", positive, self.bank)])
        ids = None
        if self.ids_in_labels:
            if labels is None or (hasattr(labels, "__len__") and not len(labels) and len(query)):
                raise ValueError(
                    f"{NAME}: ids_in_labels=True reads the label column, and there is none."
                )
            ids = ids_tensor(NAME, labels, query.shape[0], query.device)
        if self.similarity == "cos_sim":
            embeddings = [F.normalize(column, dim=1) for column in embeddings]
        ranks = self._ranks(embeddings[0], ids)
        matrices, stored, every = self._batch_logits(embeddings, ids, ranks)
        own = matrices[0].diagonal(ranks.offset)
        if self.partition_mode == "joint":
            matrices = [torch.cat(matrices, dim=1)]
        parts = [torch.logsumexp(logits, dim=1) for logits in matrices]
        if self.bank is not None:
            stored_part = self._bank_part(embeddings[0], self.bank.where(self.warm), ids)
            parts[0] = torch.logaddexp(parts[0], stored_part)
        rows = torch.stack(parts).mean(dim=0) - own
        # The mean of equal batches; of ragged ones what DDP averages to the mean over all rows.
        loss = rows.sum() / (max(ranks.total, 1) / len(ranks.sizes))
        if self.bank is not None and training_call(self, query, positive):
            self.bank.enqueue(stored, every)
            self.advance()
        return loss

    def _ranks(self, query: Tensor, ids: Tensor | None) -> Batches:
        """The batches that count: those of all ranks, or this one."""
        if self.gather_across_devices:
            return batches(query, ids, name=NAME)
        return Batches([query.shape[0]], 0, None, True)

    def _batch_logits(
        self, embeddings: list[Tensor], ids: Tensor | None, ranks: Batches
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Logits of each direction, then the positives and ids of all ranks.

        The first matrix is (B, W (1 + negatives)) with W rows on all ranks together; the right
        answers lie on its diagonal, shifted by the rows of the ranks before.
        """
        rows, offset = embeddings[0].shape[0], ranks.offset
        every = None if ids is None else ranks.gather(ids)
        embeddings = [ranks.gather(column) for column in embeddings]
        queries, documents = embeddings[0], torch.cat(embeddings[1:])
        local = slice(offset, offset + rows)
        query, positive = queries[local], embeddings[1][local]
        index = torch.arange(queries.shape[0], device=queries.device)
        own = index[local].unsqueeze(1) == index  # [B, W]
        alike = None if ids is None or every is None else (ids.unsqueeze(1) == every) & ~own
        same = own if alike is None else own | alike

        def masked(left: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
            logits = self.scale * (left @ right.t())
            if mask is None:
                return logits
            return logits.masked_fill(mask.repeat(1, len(right) // max(len(index), 1)), -torch.inf)

        found = [masked(query, documents, alike)]
        if self.hardness_mode is not None and self.hardness_strength:
            strength = self.hardness_strength / self.scale
            weighted = self._weighted(own, len(embeddings) - 1)
            found[0] = found[0] + (strength * found[0].detach()).masked_fill(~weighted, 0.0)
        if "query_to_query" in self.directions:
            found.append(masked(query, queries, same))
        if "doc_to_query" in self.directions:
            found.append(masked(positive, queries, alike))
        if "doc_to_doc" in self.directions:
            found.append(masked(positive, documents, same))
        return found, embeddings[1], every

    def _weighted(self, own: Tensor, columns: int) -> Tensor:
        """(B, W columns), True for the documents that ``hardness_mode`` weighs."""
        in_batch = self.hardness_mode in ("in_batch_negatives", "all_negatives")
        hard = self.hardness_mode in ("hard_negatives", "all_negatives")
        others = ~own & in_batch
        return torch.cat([others] + [others | (own & hard)] * (columns - 1), dim=1)

    def _bank_part(self, query: Tensor, bank: MemoryBank | BankView, ids: Tensor | None) -> Tensor:
        """(B,) log-sum of the stored documents; -inf while there are none."""
        on = self.hardness_mode in ("in_batch_negatives", "all_negatives")
        exponent = self.scale + (self.hardness_strength if on else 0.0)
        lse = bank_lse(query, bank, exponent, query_ids=ids)
        if exponent == self.scale:
            return lse
        # The hardness carries no gradient: scale O, where the kernel returns exponent O.
        empty = lse.detach() == -torch.inf
        finite = lse.masked_fill(empty, 0.0)
        part = finite.detach() + (finite - finite.detach()) * (self.scale / exponent)
        return part.masked_fill(empty, -torch.inf)

    def bank_state(self) -> dict[str, Any]:
        """The bank and the warm-up without the model, which the trainer saves itself."""
        state = self.state_dict()
        return {key: value for key, value in state.items() if not key.startswith("model.")}

    def load_bank_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``bank_state`` returned."""
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{NAME}: the state must be what bank_state() returned, got {state!r:.60}."
            )
        expected = set(self.bank_state())
        # Version 0.1.0 had another name for the count of enqueues, and none for refused keys.
        came = {"steps" if key == "_extra_state" else key for key in state}
        if came | {"bank.rejected"} & expected != expected:
            raise ValueError(
                f"{NAME}: the saved state holds {sorted(state)}, this loss needs "
                f"{sorted(expected)}; build it with the same bank."
            )
        self.load_state_dict(dict(state), strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card: the host's, and the size of the bank."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity,
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            "bank_size": 0 if self.bank is None else self.bank.rows.shape[0],
        }
