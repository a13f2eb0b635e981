"""Both directions of a contrastive loss, on one process or as a rank's share of many."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sede_kernels.bank import MemoryBank
from sede_kernels.distributed import Batches as RowsOfRanks
from sede_kernels.functional import score_info_nce
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError
from sede_kernels.training.losses import hardest_hinge
from sede_kernels.training.models import Encoded
from sede_kernels.training.ranks import Ranks, scale

Pair = tuple[Encoded, Encoded]


class Way(NamedTuple):
    """The scores of one direction, and which of them are negatives."""

    scores: Tensor  # (B, N)
    positive: Tensor | None = None  # (B,) right pairs; None: the diagonal of the scores
    valid: Tensor | None = None  # (B, N) bool
    ids: Tensor | None = None  # (B,) and
    key_ids: Tensor | None = None  # (N,), where ids decide

    def hardest(self) -> tuple[Tensor, Tensor]:
        """(B,) scores of the right pairs and of the hardest negatives, -inf without one."""
        valid = self.valid
        if self.ids is not None and self.key_ids is not None:
            valid = (self.key_ids != -1) & (self.key_ids != self.ids[:, None])
        scores = self.scores if valid is None else self.scores.masked_fill(~valid, -torch.inf)
        right = self.scores.diagonal() if self.positive is None else self.positive
        return right, scores.max(1).values


class Objective(nn.Module, ABC):
    """Both directions of the contrastive loss, and the banks it looks into.

    With a bank, all keys of a query are encoded alike and without a gradient: the positive, the
    rest of the batch, the bank. A positive that learns beside old negatives moves away from them,
    for their age alone tells right from wrong. The banks are buffers: they are saved with the run.

    On several ranks the banks are sharded, and the batch is that of all ranks or, with
    ``batch_negatives = "rank"``, a rank's own. The loss of a rank is its share of the mean over all
    rows, times the number of ranks, as DDP's averaging of gradients wants it.

    Args:
        config: loss, temperature, hardness, margin, bank size.
        ranks: of the run.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        super().__init__()
        self.config, self.ranks = config, ranks
        if config.bank and config.bank < ranks.world:
            raise UserError(
                f"bank must be at least one slot for each of the {ranks.world} processes, "
                f"got {config.bank}."
            )
        alone = config.batch_negatives == "rank" and not config.bank
        if alone and config.batch_size <= ranks.world:
            raise UserError(
                f"batch_size {config.batch_size} leaves each of the {ranks.world} processes one "
                "row at most, which has no negatives with batch_negatives 'rank' and without a "
                "bank: raise batch_size, set bank, or take batch_negatives 'all'."
            )

    def _bank(self, dim: int) -> MemoryBank:
        """A bank of vectors, this rank's part of it."""
        if self.ranks.world == 1:
            return MemoryBank(self.config.bank, dim)
        most = -(-self.config.batch_size // self.ranks.world)
        return ShardedMemoryBank(self.config.bank, dim, max_batch=most)

    def _alone(self, rows: RowsOfRanks | None, count: int) -> RowsOfRanks:
        """The layout in which a batch is compared with itself."""
        if rows is None or self.config.batch_negatives == "rank":
            return RowsOfRanks([count], 0, None, True)
        return rows

    def _one_way(self, way: Way, rows: RowsOfRanks | None) -> Tensor:
        """Mean loss of one direction."""
        alone = rows is None or len(rows.sizes) == 1
        if self.config.loss == "hinge":
            each = hardest_hinge(*way.hardest(), self.config.margin)
            total = each.mean() if alone else each.sum()
        else:
            total = score_info_nce(
                way.scores,
                way.positive,
                valid=way.valid,
                query_ids=way.ids,
                key_ids=way.key_ids,
                temperature=self.config.temperature,
                hardness=self.config.weighting,
                reduction="mean" if alone else "sum",
            )
        return total if rows is None or alone else total * scale(rows)

    @abstractmethod
    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
        rows: RowsOfRanks | None = None,
    ) -> Tensor:
        """Mean loss of both directions.

        Args:
            images: B images.
            captions: their B captions, row for row.
            ids: (B,) image ids: rows of one id are no negatives of each other.
            keys: the same images and captions as keys, detached; the banks then count.
                None: the batch alone, each side the keys of the other.
            erased: the images came from the model's ``erased``; of the batch alone.
            rows: how the rows of all ranks lie; None for this process alone.
        """

    @abstractmethod
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the keys of images and captions; in training only, after the loss."""
