"""The loss of a batch against the batch and two banks, for vectors and for fragments."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sede_kernels.bank import FragmentBank, MemoryBank
from sede_kernels.functional import hardest_negatives, weighted_info_nce
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.losses import hardest_hinge, score_info_nce
from sede_kernels.training.models import Encoded, RetrievalModel

Pair = tuple[Encoded, Encoded]


class Objective(nn.Module, ABC):
    """Both directions of the contrastive loss, and the banks it looks into.

    With a bank, all keys of a query come from the momentum encoders: the positive, the rest of the
    batch, the bank. Were the positive the trained encoder's and the bank's negatives older, their
    age alone would tell right from wrong, and that is what the model learns. The banks are buffers:
    they are saved with the run and never get a gradient.

    Args:
        config: loss, temperature, hardness, margin, bank size.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair | None = None
    ) -> Tensor:
        """Mean loss of both directions.

        Args:
            images: B images.
            captions: their B captions, row for row.
            ids: (B,) image ids: rows of one id are no negatives of each other.
            keys: the same images and captions by the momentum encoders; the banks then count.
                None: the batch alone, each side the keys of the other.
        """

    @abstractmethod
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the momentum encoders' images and captions; in training only, after the loss."""


class VectorObjective(Objective):
    """For models with one vector a side: the fused kernels of this library.

    Args:
        config: settings.
        dim: width of the vectors.
    """

    def __init__(self, config: TrainConfig, dim: int) -> None:
        super().__init__(config)
        if config.bank:
            self.image_bank = MemoryBank(config.bank, dim)
            self.caption_bank = MemoryBank(config.bank, dim)

    def forward(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair | None = None
    ) -> Tensor:
        """Mean loss of both directions."""
        image, caption = images.unit_vector(), captions.unit_vector()
        if keys is None:
            losses = (
                self._one_way(image, caption, None, ids),
                self._one_way(caption, image, None, ids),
            )
        else:
            old_image, old_caption = (side.unit_vector() for side in keys)
            losses = (
                self._one_way(image, old_caption, self.caption_bank, ids),
                self._one_way(caption, old_image, self.image_bank, ids),
            )
        return (losses[0] + losses[1]) / 2

    def _one_way(self, query: Tensor, key: Tensor, bank: MemoryBank | None, ids: Tensor) -> Tensor:
        if self.config.loss == "hinge":
            return self._hinge(query, key, bank, ids)
        loss = weighted_info_nce(
            query,
            key,
            bank,
            temperature=self.config.temperature,
            hardness=self.config.weighting,
            query_ids=ids,
            in_batch_negatives=True,
        )
        return loss if isinstance(loss, Tensor) else loss[0]

    def _hinge(self, query: Tensor, key: Tensor, bank: MemoryBank | None, ids: Tensor) -> Tensor:
        scores = query @ key.t()
        hardest = scores.masked_fill(ids[:, None] == ids, float("-inf")).max(1).values
        if bank is not None:
            values, rows = hardest_negatives(query.detach(), bank, 1, query_ids=ids)
            found = rows[:, 0].clamp_min(0)
            # The dot product again, so that the query gets a gradient.
            again = (query * bank.rows[found]).sum(1)
            hardest = torch.maximum(hardest, again.masked_fill(values[:, 0].isinf(), -torch.inf))
        return hardest_hinge(scores.diagonal(), hardest, self.config.margin).mean()

    @torch.no_grad()
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store one vector an image and a caption."""
        self.image_bank.enqueue(keys[0].unit_vector(), ids)
        self.caption_bank.enqueue(keys[1].unit_vector(), ids)


class FragmentObjective(Objective):
    """For models that compare fragments: banks of region and word sets, scored by the model.

    Args:
        config: settings.
        model: its ``score`` compares queries with banks; it is not a sub-module here.
        regions: fragments an image.
        longest: words of the longest caption.
    """

    def __init__(
        self, config: TrainConfig, model: RetrievalModel, regions: int, longest: int
    ) -> None:
        super().__init__(config)
        self._score = model.score
        if config.bank:
            self.image_bank = FragmentBank(config.bank, regions, config.dim)
            self.caption_bank = FragmentBank(config.bank, longest, config.dim)

    def forward(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair | None = None
    ) -> Tensor:
        """Mean loss of both directions."""
        if keys is None:
            batch = self._score(images, captions)
            losses = self._one_way(batch, ids, ids), self._one_way(batch.t(), ids, ids)
        else:
            image_bank, caption_bank = self.image_bank, self.caption_bank
            to_text = [self._score(images, keys[1]), self._score(images, _stored(caption_bank))]
            to_image = [self._score(keys[0], captions), self._score(_stored(image_bank), captions)]
            losses = (
                self._one_way(torch.cat(to_text, 1), ids, torch.cat([ids, caption_bank.ids])),
                self._one_way(torch.cat(to_image).t(), ids, torch.cat([ids, image_bank.ids])),
            )
        return (losses[0] + losses[1]) / 2

    def _one_way(self, scores: Tensor, ids: Tensor, key_ids: Tensor) -> Tensor:
        """Loss of (B, B + K) scores whose diagonal holds the right pairs."""
        positive = scores.diagonal()
        valid = (key_ids != -1) & (key_ids != ids[:, None])
        if self.config.loss == "hinge":
            hardest = scores.masked_fill(~valid, float("-inf")).max(1).values
            return hardest_hinge(positive, hardest, self.config.margin).mean()
        return score_info_nce(
            positive,
            scores,
            valid,
            temperature=self.config.temperature,
            hardness=self.config.weighting,
        ).mean()

    @torch.no_grad()
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the region set of each image and the word set of each caption."""
        images, captions = keys
        self.image_bank.enqueue(images.fragments, images.lengths, ids)
        self.caption_bank.enqueue(captions.fragments, captions.lengths, ids)


def _stored(bank: FragmentBank) -> Encoded:
    return Encoded(bank.rows, bank.lengths)
