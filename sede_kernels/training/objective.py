"""The loss of a batch against the batch and two banks, for vectors and for fragments."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sede_kernels.bank import FragmentBank, MemoryBank
from sede_kernels.functional import hardest_negatives, score_info_nce, symmetric_info_nce
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.losses import hardest_hinge
from sede_kernels.training.models import Encoded, FragmentModel

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

    Args:
        config: loss, temperature, hardness, margin, bank size.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
    ) -> Tensor:
        """Mean loss of both directions.

        Args:
            images: B images.
            captions: their B captions, row for row.
            ids: (B,) image ids: rows of one id are no negatives of each other.
            keys: the same images and captions as keys, detached; the banks then count.
                None: the batch alone, each side the keys of the other.
            erased: the images came from the model's ``erased``; of the batch alone.
        """

    @abstractmethod
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the keys of images and captions; in training only, after the loss."""


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
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
    ) -> Tensor:
        """Mean loss of both directions."""
        image, caption = images.unit_vector(), captions.unit_vector()
        old_image, old_caption, image_bank, caption_bank = image, caption, None, None
        if keys is not None:
            old_image, old_caption = (side.unit_vector() for side in keys)
            image_bank, caption_bank = self.image_bank, self.caption_bank
        if self.config.loss == "hinge":
            first = self._hinge(image, old_caption, caption_bank, ids)
            return (first + self._hinge(caption, old_image, image_bank, ids)) / 2
        return symmetric_info_nce(
            image,
            caption,
            old_image,
            old_caption,
            image_bank,
            caption_bank,
            temperature=self.config.temperature,
            hardness=self.config.weighting,
            ids=ids,
            in_batch_negatives=True,
            unit_length=True,
        )

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

    With ``bank_hardest`` = k, each query first finds its k hardest sets by the cosine of mean
    fragments, with the fused kernels, and the model scores it with its own key and those k sets.
    With 0 it scores every query with the keys of the batch and the whole bank, B times K pairs.

    Args:
        config: settings.
        model: its ``score`` compares queries with banks; it is not a sub-module here.
        regions: fragments an image.
        longest: words of the longest caption.
    """

    def __init__(
        self, config: TrainConfig, model: FragmentModel, regions: int, longest: int
    ) -> None:
        super().__init__(config)
        self._score = model.score
        self._score_pairs = model.score_pairs
        if config.bank:
            self.image_bank = FragmentBank(config.bank, regions, config.dim)
            self.caption_bank = FragmentBank(config.bank, longest, config.dim)
            self.image_means = MemoryBank(config.bank, config.dim)
            self.caption_means = MemoryBank(config.bank, config.dim)

    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
    ) -> Tensor:
        """Mean loss of both directions."""
        if keys is None:
            batch = self._score(images, captions, erased=erased)
            ways = Way(batch, ids=ids, key_ids=ids), Way(batch.t(), ids=ids, key_ids=ids)
        else:
            against = self._of_hardest if self.config.bank_hardest else self._of_bank
            ways = against(images, captions, ids, keys)
        first, second = (self._one_way(way) for way in ways)
        return (first + second) / 2

    def _one_way(self, way: Way) -> Tensor:
        """Mean loss of one direction."""
        if self.config.loss == "hinge":
            return hardest_hinge(*way.hardest(), self.config.margin).mean()
        return score_info_nce(
            way.scores,
            way.positive,
            valid=way.valid,
            query_ids=way.ids,
            key_ids=way.key_ids,
            temperature=self.config.temperature,
            hardness=self.config.weighting,
        )

    def _of_bank(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair
    ) -> tuple[Way, Way]:
        """Against the keys of the batch and all that is stored."""
        stored = (Encoded(bank.rows, bank.lengths) for bank in (self.image_bank, self.caption_bank))
        others, texts = (_joined(key, sets) for key, sets in zip(keys, stored, strict=True))
        return (
            Way(
                self._score(images, texts),
                ids=ids,
                key_ids=torch.cat([ids, self.caption_bank.ids]),
            ),
            Way(
                self._score(others, captions).t(),
                ids=ids,
                key_ids=torch.cat([ids, self.image_bank.ids]),
            ),
        )

    def _of_hardest(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair
    ) -> tuple[Way, Way]:
        """Each query against its own key and the hardest sets that it finds in the bank."""
        image_keys, caption_keys = keys
        texts, some_texts = self._candidates(
            images, caption_keys, self.caption_bank, self.caption_means, ids
        )
        others, some_others = self._candidates(
            captions, image_keys, self.image_bank, self.image_means, ids
        )
        to_text = self._score_pairs(_each(images), texts)
        to_image = self._score_pairs(others, _each(captions))
        return (
            Way(to_text[:, 1:], to_text[:, 0], some_texts),
            Way(to_image[:, 1:], to_image[:, 0], some_others),
        )

    def _candidates(
        self, query: Encoded, key: Encoded, bank: FragmentBank, means: MemoryBank, ids: Tensor
    ) -> tuple[Encoded, Tensor]:
        """Of each query its key, then its hardest sets (B, 1 + k, L, D); which exist (B, k)."""
        wanted = self.config.bank_hardest
        near = hardest_negatives(mean_fragment(query), means, wanted, query_ids=ids)[1]
        rows = nn.functional.pad(near.clamp_min(0), (1, 0))  # the first place is for the key
        sets = bank.rows.index_select(0, rows.flatten()).view(*rows.shape, *bank.rows.shape[1:])
        lengths, width = bank.lengths[rows], key.fragments.shape[1]
        sets[:, 0, :width] = key.fragments
        lengths[:, 0] = width if key.lengths is None else key.lengths
        return Encoded(sets.to(query.fragments.dtype), lengths), near >= 0

    @torch.no_grad()
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the region set of each image and the word set of each caption."""
        images, captions = keys
        self.image_bank.enqueue(images.fragments, images.lengths, ids)
        self.caption_bank.enqueue(captions.fragments, captions.lengths, ids)
        self.image_means.enqueue(mean_fragment(images), ids)
        self.caption_means.enqueue(mean_fragment(captions), ids)


def _each(side: Encoded) -> Encoded:
    """(B, L, D) fragments as (B, 1, L, D), for the scores of chosen pairs."""
    lengths = side.lengths
    return Encoded(side.fragments.unsqueeze(1), None if lengths is None else lengths.unsqueeze(1))


def _joined(first: Encoded, second: Encoded) -> Encoded:
    """Two batches of sets as one."""
    longest = max(first.fragments.shape[1], second.fragments.shape[1])
    sides = [
        nn.functional.pad(s.fragments, (0, 0, 0, longest - s.fragments.shape[1]))
        for s in (first, second)
    ]
    lengths = [
        s.lengths
        if s.lengths is not None
        else torch.full((len(s.fragments),), s.fragments.shape[1], device=s.fragments.device)
        for s in (first, second)
    ]
    return Encoded(torch.cat(sides), torch.cat(lengths))


@torch.no_grad()
def mean_fragment(side: Encoded) -> Tensor:
    """Unit mean of the real fragments of each set, (B, D), without a gradient."""
    fragments = side.fragments
    if side.lengths is None:
        total = fragments.sum(1)
    else:
        places = torch.arange(fragments.shape[1], device=fragments.device)
        real = (places < side.lengths.unsqueeze(1)).to(fragments.dtype)
        total = torch.bmm(real.unsqueeze(1), fragments).squeeze(1)
    return nn.functional.normalize(total, dim=1)
