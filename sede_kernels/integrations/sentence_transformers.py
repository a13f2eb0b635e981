"""sentence-transformers: its multiple-negatives ranking loss with a bank and ids."""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import EMPTY, BankView, MemoryBank
from sede_kernels.checks import check_choice
from sede_kernels.distributed import Batches, batches
from sede_kernels.functional import bank_lse
from sede_kernels.integrations._banked import mean_of_all, snapshot, training_call
from sede_kernels.integrations._candidates import Candidates, Similarity, inner_products
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_features,
    check_real,
    check_stored,
    check_switch,
    ids_tensor,
)
from sede_kernels.integrations._repeated import Step, wrapper_of
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.warmup import WarmUp

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = (None, "in_batch_negatives", "hard_negatives", "all_negatives")
SIMILARITIES = ("cos_sim", "dot_score")
NAME = "MultipleNegativesRankingLoss"
CITATIONS = {
    "gte": "Li et al. 2023, https://arxiv.org/abs/2308.03281",
    "symmetric": "Guenther et al. 2023, https://arxiv.org/abs/2310.19923",
    "ranking": "van den Oord et al. 2018, https://arxiv.org/abs/1807.03748",
    "bank": "He et al. 2020, https://arxiv.org/abs/1911.05722",
}


@functools.cache
def _embed_columns() -> Callable[[nn.Module, Iterable[dict[str, Tensor]]], list[Tensor]]:
    """The host's own way from features to one embedding a column; 6.x merges like columns."""
    try:
        merged = importlib.import_module("sentence_transformers.base.losses.merged_forward")
    except ImportError:
        return lambda model, columns: [model(column)["sentence_embedding"] for column in columns]
    found: Callable[[nn.Module, Iterable[dict[str, Tensor]]], list[Tensor]] = merged.embed_columns
    return found


class MultipleNegativesRankingLoss(WarmUp):
    """Twin of the host's loss of that name, with a bank of past documents.

    ``loss = -log(e^{scale s+} / sum_d e^{scale s_d + strength sg(s_d)})`` over the documents of
    the batch and of the bank. With an empty bank value and gradients are the host's, for every
    ``hardness_mode``, ``directions`` and ``partition_mode``; the stored documents join
    ``query_to_doc``. In training each call stores its positives after the loss. Inside the host's
    ``MatryoshkaLoss`` and ``AdaptiveLayerLoss`` a step stores once, the whole embedding of the last
    layer, and every width and layer is compared with the rows from before the step, cut to its
    width.

    Args:
        model: the SentenceTransformer.
        scale: 1 / temperature.
        similarity_fct: the host's ``util.cos_sim`` (also None) or ``util.dot_score``, or any
            function (n, D), (m, D) -> (n, m).
        gather_across_devices: as the host: the batches of all ranks count; all banks are equal.
        sharded: all ranks hold the bank together, see ``ShardedMemoryBank``; needs a bank, and
            ``util.cos_sim`` or ``util.dot_score``. Each stores its own positives.
        directions: as the host; ``query_to_doc`` is among them.
        partition_mode: as the host, ``joint`` or ``per_direction``.
        hardness_mode: as the host; documents of the bank count as in-batch negatives.
        hardness_strength: as the host: >= 0, added to the logits as strength x similarity,
            without a gradient; in cosine units.
        bank_size: positives kept; 0 for no bank.
        dim: D, width of the embeddings; None asks the model. The largest width of a
            ``MatryoshkaLoss``.
        bank_dtype: see ``MemoryBank``.
        ids_in_labels: the data set's ``label`` column holds integers >= 0 naming what each row is
            of; rows and stored documents of one id are no negatives of each other.
        start_step: enqueues before the bank takes part.

    Cost:
        The bank is read once, without a B x K matrix; a ``similarity_fct`` of your own makes one.
        Each width and layer of a wrapper after the first copies the bank, cut to its width.

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
        sharded: bool = False,
    ) -> None:
        super().__init__(start_step)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{NAME}: model must be a SentenceTransformer, got {model!r:.60}.")
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
        self.similarity_fct = similarity_fct
        self._check_similarity()
        self._step = Step()
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
        self.sharded = check_switch(NAME, "sharded", sharded)
        self._check_shards(size)
        if size:
            kind = ShardedMemoryBank if self.sharded else MemoryBank
            self.bank = kind(size, width, dtype=bank_dtype, normalize=False)

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
        columns = _embed_columns()(self.model, list(sentence_features))
        return self.compute_loss_from_embeddings(columns, labels)

    @property
    def temperature(self) -> float:
        """1 / scale, as in the host."""
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        """Where the loss comes from, for the model card."""
        chosen = set(self.directions)
        kind = "gte" if chosen == set(DIRECTIONS) and self.partition_mode == "joint" else "ranking"
        if chosen == {"query_to_doc", "doc_to_query"} and self.partition_mode != "joint":
            kind = "symmetric"
        sources = [CITATIONS[kind]] + [CITATIONS["bank"]] * (self.bank is not None)
        return "\n".join(sources)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Ids | None = None
    ) -> Tensor:
        """The same from embeddings (B, D), one tensor a column: anchors, positives, negatives."""
        if len(embeddings) < 2:
            raise ValueError(f"{NAME}: needs anchors and positives, got {len(embeddings)} column.")
        self._check_similarity()
        self._check_shards(0 if self.bank is None else self.bank.rows.shape[0])
        self._step.begin(self._token())
        query = embeddings[0]
        check_features(NAME, "sentence_embedding", query, (None, None))
        for column in embeddings:
            check_features(NAME, "sentence_embedding of each column", column, tuple(query.shape))
        whole = self.bank is None or not self._narrower(query)
        check_stored(NAME, [("sentence_embedding", query, self.bank if whole else None)])
        ids = self._ids(labels, query)
        if self.similarity == "cos_sim":
            embeddings = [F.normalize(column, dim=1) for column in embeddings]
        ranks = self._ranks(embeddings[0], ids)
        candidates = Candidates(
            [ranks.gather(column) for column in embeddings],
            None if ids is None else ranks.gather(ids),
            inner_products if self._by_product else self._compare,
            self.scale,
            self.directions,
            self.hardness_mode,
            self.hardness_strength,
        )
        rows = self._rows(candidates, embeddings[0], ids, ranks.offset)
        if self.bank is not None and self.sharded and not self.gather_across_devices:
            loss = mean_of_all(rows, self.bank)
        else:
            # The mean of equal batches; of ragged ones what DDP averages to the mean over all rows.
            loss = rows.sum() / (max(ranks.total, 1) / len(ranks.sizes))
        training = training_call(self, *embeddings[:2])
        if self.bank is not None and training and whole and not self._step.stored:
            keys = (embeddings[1], ids) if self.sharded else (candidates.columns[1], candidates.ids)
            self._step.remember(self.bank, len(keys[0]), self.warm)
            self.bank.enqueue(*keys)
            self.advance()
        return loss

    def _token(self) -> Any:
        """What all calls of one step share; None where every call is a step of its own."""
        alone = self.bank is None or torch.compiler.is_compiling()
        return None if alone else wrapper_of(self.model)

    def _narrower(self, query: Tensor) -> bool:
        """Whether a wrapper has cut the embeddings below the width of the bank."""
        bank = self.bank
        return bank is not None and self._step.repeats and query.shape[1] < bank.rows.shape[1]

    @property
    def similarity(self) -> str:
        """Name of the host's similarity, or of your own; follows ``similarity_fct``."""
        given: Any = "cos_sim" if self.similarity_fct is None else self.similarity_fct
        named = getattr(given, "__name__", given)
        return named if isinstance(named, str) else type(given).__name__

    def _check_shards(self, size: int) -> None:
        if self.sharded and not (size and self._by_product):
            raise ValueError(
                f"{NAME}: sharded=True needs a bank and util.cos_sim or util.dot_score, got "
                f"bank_size={size} and {self.similarity}."
            )

    def _check_similarity(self) -> None:
        """Whether ``similarity_fct``, which may be assigned at any time, can be computed."""
        given = self.similarity_fct
        if not self._by_product and not callable(given):
            raise ValueError(
                f"{NAME}: similarity_fct must be util.cos_sim, util.dot_score or a function of two "
                f"matrices, got {given!r}."
            )

    @property
    def _by_product(self) -> bool:
        return self.similarity in SIMILARITIES

    def _compare(self, left: Tensor, right: Tensor) -> Tensor:
        """A similarity of the user's own, which must be (n, m)."""
        if self.similarity_fct is None:
            return inner_products(left, right)
        found = self.similarity_fct(left, right)
        check_features(NAME, "the result of similarity_fct", found, (len(left), len(right)), "n, m")
        return found

    def _ids(self, labels: Ids | None, query: Tensor) -> Tensor | None:
        if not self.ids_in_labels:
            return None
        if labels is None or (hasattr(labels, "__len__") and not len(labels) and len(query)):
            raise ValueError(
                f"{NAME}: ids_in_labels=True reads the label column, and there is none."
            )
        return ids_tensor(NAME, labels, query.shape[0], query.device)

    def _ranks(self, query: Tensor, ids: Tensor | None) -> Batches:
        """The batches that count: those of all ranks, or this one."""
        if self.gather_across_devices:
            return batches(query, ids, name=NAME)
        return Batches([query.shape[0]], 0, None, True)

    def _rows(
        self, candidates: Candidates, query: Tensor, ids: Tensor | None, offset: int
    ) -> Tensor:
        """(B,) losses of the rows of this rank."""
        matrices = candidates.logits(slice(offset, offset + query.shape[0]))
        own = matrices[0].diagonal(offset)
        if self.partition_mode == "joint":
            matrices = [torch.cat(matrices, dim=1)]
        parts = [torch.logsumexp(logits, dim=1) for logits in matrices]
        if self.bank is not None:
            view = self._step.view(self.bank, query.shape[1], self.warm, query.dtype)
            if self.sharded and not torch.is_grad_enabled():  # validation, perhaps on one rank
                view = (view.view() if isinstance(view, MemoryBank) else view)._replace(shard=None)
            parts[0] = torch.logaddexp(parts[0], self._bank_part(query, view, ids))
        return torch.stack(parts).mean(dim=0) - own

    def _bank_part(self, query: Tensor, bank: MemoryBank | BankView, ids: Tensor | None) -> Tensor:
        """(B,) log-sum of the stored documents; -inf while there are none."""
        on = self.hardness_mode in ("in_batch_negatives", "all_negatives")
        exponent = self.scale + (self.hardness_strength if on else 0.0)
        if not self._by_product:
            return self._plain_part(query, bank, ids, exponent)
        lse = bank_lse(query, bank, exponent, query_ids=ids)
        if exponent == self.scale:
            return lse
        # The hardness carries no gradient: scale O, where the kernel returns exponent O.
        empty = lse.detach() == -torch.inf
        finite = lse.masked_fill(empty, 0.0)
        part = finite.detach() + (finite - finite.detach()) * (self.scale / exponent)
        return part.masked_fill(empty, -torch.inf)

    def _plain_part(
        self, query: Tensor, bank: MemoryBank | BankView, ids: Tensor | None, exponent: float
    ) -> Tensor:
        """The same by a similarity of the user's own, with its (B, K) matrix."""
        rows = snapshot(bank.rows, query.dtype)
        if bank.row_scale is not None:
            rows = rows * snapshot(bank.row_scale, query.dtype).unsqueeze(1)
        similarity = self._compare(query, rows)
        hidden = (bank.ids == EMPTY).expand_as(similarity)
        if ids is not None:
            hidden = hidden | (ids.unsqueeze(1) == bank.ids)
        strength = exponent - self.scale
        logits = self.scale * similarity + strength * similarity.detach()
        return torch.logsumexp(logits.masked_fill(hidden, -torch.inf), dim=1)

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
