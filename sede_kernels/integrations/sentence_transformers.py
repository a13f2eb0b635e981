"""sentence-transformers: its multiple-negatives ranking loss with a bank and ids."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import MemoryBank
from sede_kernels.functional import bank_lse
from sede_kernels.integrations._banked import BankedLoss, ids_tensor, training_call

HARDNESS_MODES = (None, "in_batch_negatives", "hard_negatives", "all_negatives")
NAME = "MultipleNegativesRankingLoss"


class MultipleNegativesRankingLoss(BankedLoss):
    """Twin of the host's loss of that name (query to document), with a bank of past documents.

    ``loss = -log(e^{scale s+} / sum_d e^{scale s_d + strength sg(s_d)})`` over the documents of
    the batch and of the bank. With an empty bank value and gradients are the host's, for every
    ``hardness_mode``. In training each call stores its positives after the loss.

    Args:
        model: the SentenceTransformer.
        scale: 1 / temperature.
        normalize: cosine similarity (the host's default); False for the dot product.
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
        *,
        normalize: bool = True,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        bank_size: int = 0,
        dim: int | None = None,
        bank_dtype: torch.dtype = torch.float32,
        ids_in_labels: bool = False,
        start_step: int = 0,
    ) -> None:
        super().__init__(start_step)
        if not scale > 0:
            raise ValueError(f"{NAME}: scale must be > 0, got {scale}.")
        if hardness_mode not in HARDNESS_MODES:
            modes = ", ".join(map(str, HARDNESS_MODES))
            raise ValueError(
                f"{NAME}: hardness_mode must be one of {modes}, got {hardness_mode!r}."
            )
        if not hardness_strength >= 0:
            raise ValueError(f"{NAME}: hardness_strength must be >= 0, got {hardness_strength}.")
        self.model = model
        self.scale = float(scale)
        self.normalize = normalize
        self.hardness_mode = hardness_mode
        self.hardness_strength = float(hardness_strength)
        self.ids_in_labels = ids_in_labels
        self.bank: MemoryBank | None = None
        if bank_size:
            width = dim if dim is not None else self._width(model)
            self.bank = MemoryBank(bank_size, width, dtype=bank_dtype, normalize=False)

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
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """The same from embeddings (B, D), one tensor a column: anchors, positives, negatives."""
        if len(embeddings) < 2:
            raise ValueError(f"{NAME}: needs anchors and positives, got {len(embeddings)} column.")
        ids = None
        if self.ids_in_labels:
            if labels is None or labels.numel() == 0:
                raise ValueError(
                    f"{NAME}: ids_in_labels=True reads the label column, and there is none."
                )
            ids = ids_tensor(NAME, labels, embeddings[0].shape[0], embeddings[0].device)
        if self.normalize:
            embeddings = [F.normalize(column, dim=1) for column in embeddings]
        query, positive = embeddings[:2]
        logits = self._batch_logits(query, embeddings[1:], ids)
        everything = torch.logsumexp(logits, dim=1)
        if self.bank is not None and self.warm:
            everything = torch.logaddexp(everything, self._bank_part(query, self.bank, ids))
        loss = (everything - logits.diagonal()).mean()
        if self.bank is not None and training_call(self, query, positive):
            self.bank.enqueue(positive, ids)
            self.steps += 1
        return loss

    def _batch_logits(self, query: Tensor, documents: list[Tensor], ids: Tensor | None) -> Tensor:
        """(B, B (1 + negatives)) logits; the positives lie on the diagonal."""
        rows = query.shape[0]
        cosine = query @ torch.cat(documents).t()
        own = torch.eye(rows, dtype=torch.bool, device=query.device)
        owned = own.repeat(1, len(documents))
        weighted = torch.zeros_like(owned)
        if self.hardness_mode in ("in_batch_negatives", "all_negatives"):
            weighted = weighted | ~owned
        if self.hardness_mode in ("hard_negatives", "all_negatives"):
            weighted[:, rows:] |= owned[:, rows:]
        logits = self.scale * cosine + self.hardness_strength * cosine.detach() * weighted
        if ids is not None:
            same = (ids.unsqueeze(1) == ids).repeat(1, len(documents)) & ~owned
            logits = logits.masked_fill(same, -torch.inf)
        return logits

    def _bank_part(self, query: Tensor, bank: MemoryBank, ids: Tensor | None) -> Tensor:
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
        expected = set(self.bank_state())
        if set(state) != expected:
            raise ValueError(
                f"{NAME}: the saved state holds {sorted(state)}, this loss needs "
                f"{sorted(expected)}; build it with the same bank."
            )
        self.load_state_dict(dict(state), strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        return {
            "scale": self.scale,
            "normalize": self.normalize,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            "bank_size": 0 if self.bank is None else self.bank.rows.shape[0],
        }
