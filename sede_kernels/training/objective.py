"""The loss of a batch against the batch and two banks, for vectors and for fragments."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sede_kernels.bank import FragmentBank, MemoryBank
from sede_kernels.functional import hardest_negatives, weighted_info_nce
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.losses import hardest_hinge, score_info_nce
from sede_kernels.training.models import Encoded, RetrievalModel


class Objective(nn.Module, ABC):
    """Both directions of the contrastive loss, and the banks it looks into.

    The banks are buffers: they are saved with the run and never get a gradient.

    Args:
        config: loss, temperature, hardness, margin, bank size.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images: Encoded, captions: Encoded, ids: Tensor, *, use_bank: bool) -> Tensor:
        """Mean loss of both directions.

        Args:
            images: B images.
            captions: their B captions, row for row.
            ids: (B,) image ids: rows of one id are no negatives of each other.
            use_bank: whether the bank's entries count as negatives too.
        """

    @abstractmethod
    def enqueue(self, images: Encoded, captions: Encoded, ids: Tensor) -> None:
        """Store the momentum encoders' keys; call it in training only, after the loss."""


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

    def forward(self, images: Encoded, captions: Encoded, ids: Tensor, *, use_bank: bool) -> Tensor:
        """Mean loss of both directions."""
        image, caption = images.unit_vector(), captions.unit_vector()
        use_bank = use_bank and self.config.bank > 0
        sides = (
            (image, caption, self.caption_bank if use_bank else None),
            (caption, image, self.image_bank if use_bank else None),
        )
        losses = [self._one_way(query, key, bank, ids) for query, key, bank in sides]
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
    def enqueue(self, images: Encoded, captions: Encoded, ids: Tensor) -> None:
        """Store one vector an image and a caption."""
        self.image_bank.enqueue(images.unit_vector(), ids)
        self.caption_bank.enqueue(captions.unit_vector(), ids)


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

    def forward(self, images: Encoded, captions: Encoded, ids: Tensor, *, use_bank: bool) -> Tensor:
        """Mean loss of both directions."""
        batch = self._score(images, captions)
        use_bank = use_bank and self.config.bank > 0
        to_text = [(batch, ids)]
        to_image = [(batch.t(), ids)]
        if use_bank:
            text, image = self.caption_bank, self.image_bank
            to_text.append((self._score(images, _stored(text)), text.ids))
            to_image.append((self._score(_stored(image), captions).t(), image.ids))
        positive = batch.diagonal()
        losses = [self._one_way(positive, group, ids) for group in (to_text, to_image)]
        return (losses[0] + losses[1]) / 2

    def _one_way(
        self, positive: Tensor, groups: list[tuple[Tensor, Tensor]], ids: Tensor
    ) -> Tensor:
        scores = torch.cat([s for s, _ in groups], 1)
        keys = torch.cat([k for _, k in groups])
        valid = (keys != -1) & (keys != ids[:, None])
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
    def enqueue(self, images: Encoded, captions: Encoded, ids: Tensor) -> None:
        """Store the region set of each image and the word set of each caption."""
        count, regions = images.fragments.shape[:2]
        every = torch.full((count,), regions, device=ids.device)
        lengths = every if images.lengths is None else images.lengths
        self.image_bank.enqueue(images.fragments, lengths, ids)
        words = every if captions.lengths is None else captions.lengths
        self.caption_bank.enqueue(captions.fragments, words, ids)


def _stored(bank: FragmentBank) -> Encoded:
    return Encoded(bank.rows, bank.lengths)
