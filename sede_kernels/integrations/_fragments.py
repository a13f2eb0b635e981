"""Criterion of the models that compare regions with words, with two fragment banks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sede_kernels.bank import EMPTY, FragmentBank
from sede_kernels.checks import check_count
from sede_kernels.integrations._banked import snapshot, training_call
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_beside,
    check_features,
    described,
    ids_tensor,
    lengths_tensor,
)
from sede_kernels.integrations._scores import (
    PairCost,
    bank_mask,
    check_pair_cost,
    hinge,
    info_nce,
    negatives_mask,
)
from sede_kernels.warmup import WarmUp

Lengths = Tensor | Sequence[int]
Score = Callable[[Tensor, Tensor, Lengths], Tensor]
NAME = "ContrastiveLoss"


class Fragments(NamedTuple):
    """Regions (B, R, D), words (B, L, D) and the word counts (B,) of a batch."""

    images: Tensor
    captions: Tensor
    lengths: Lengths

    @classmethod
    def of(cls, argument: str, parts: "Fragments | tuple[Tensor, Tensor, Lengths]") -> "Fragments":
        """From any three things side by side."""
        if not isinstance(parts, tuple | list) or len(parts) != 3:
            raise TypeError(
                f"{NAME}: {argument} must be (images, captions, lengths), got {described(parts)}."
            )
        return cls(*parts)


class Stored(NamedTuple):
    """Scores (B, K) with stored sets, queries in rows, and the ids (K,) of those."""

    scores: Tensor
    ids: Tensor


def _stored_sets(bank: FragmentBank) -> slice | Tensor | None:
    """The slots that hold a set: a slice while there are no holes; None for an empty bank."""
    count = len(bank)
    if not count:
        return None
    full = bank.ids != EMPTY
    return slice(count) if bool(full[:count].all()) else torch.where(full)[0]


class FragmentLoss(WarmUp):
    """Bidirectional hinge, or weighted InfoNCE, of a score matrix and two banks.

    Args:
        margin: of the hinge.
        max_violation: count only the hardest negative of each query.
        score: (images, captions, lengths) -> (n_image, n_caption), for batch and banks.
        bank_size: image and caption sets kept; 0 for no bank.
        dim: D, width of a fragment.
        regions: fragments of an image (most, if they vary).
        max_words: words kept of a caption in the bank; longer ones are cut there.
        bank_dtype: dtype of the banks; float16 halves them.
        temperature: None for the hinge, a number for the weighted InfoNCE.
        hardness: beta >= 0, weights n softmax(beta s) over the negatives, detached;
            of no effect on a single hardest negative.
        start_step: enqueues before the banks take part.

    Cost:
        The banks hold bank_size (regions + max_words) D numbers. Each step scores the batch
        against every stored set, 2 bank_size / B times the work of the batch itself.
    """

    def __init__(
        self,
        margin: float,
        max_violation: bool,
        *,
        score: Score | None,
        bank_size: int = 0,
        dim: int | None = None,
        regions: int = 36,
        max_words: int = 64,
        bank_dtype: torch.dtype = torch.float32,
        temperature: float | None = None,
        hardness: float = 0.0,
        start_step: int = 0,
    ) -> None:
        super().__init__(start_step)
        settings = check_pair_cost(NAME, margin, max_violation, temperature, hardness)
        self.margin, self.max_violation, self.temperature, self.hardness = settings
        if score is not None and not callable(score):
            raise TypeError(
                f"{NAME}: score must be a function of images, captions and lengths, got {score!r}."
            )
        # Its bound call, so that a score that is a module stays the model's and not a child here.
        self._score = score.__call__ if isinstance(score, nn.Module) else score
        self.image_bank: FragmentBank | None = None
        self.text_bank: FragmentBank | None = None
        size, width = check_bank_settings(NAME, bank_size, dim, bank_dtype, fragments=True)
        if size:
            if score is None:
                raise ValueError(f"{NAME}: bank_size={size} needs score too.")
            regions = check_count(NAME, "regions", regions, least=1)
            max_words = check_count(NAME, "max_words", max_words, least=1)
            self.image_bank = FragmentBank(size, regions, width, dtype=bank_dtype)
            self.text_bank = FragmentBank(size, max_words, width, dtype=bank_dtype)

    def extra_repr(self) -> str:
        """The settings of the criterion."""
        return (
            f"margin={self.margin}, max_violation={self.max_violation}, "
            f"temperature={self.temperature}, hardness={self.hardness}"
        )

    def score(self, images: Tensor, captions: Tensor, lengths: Lengths) -> Tensor:
        """(n_image, n_caption) similarities."""
        if self._score is None:
            raise ValueError("ContrastiveLoss: pass score=, a function of images and captions.")
        return self._score(images, captions, lengths)

    def loss(
        self,
        scores: Tensor,
        batch: Fragments | None = None,
        ids: Ids | None = None,
        keys: Fragments | None = None,
    ) -> Tensor:
        """Both directions, summed; in training the batch then goes into the banks.

        Args:
            scores: (B, B) similarities, images in rows.
            batch: what they were computed from; needed for the banks.
            ids: (B,) image of each pair; pairs of one image are no negatives.
            keys: what to store instead of the batch (a momentum encoder's output).
        """
        check_features(NAME, "scores", scores, (None, None), "B, B")
        rows = scores.shape[0]
        if scores.shape[1] != rows:
            raise ValueError(
                f"{NAME}: scores must be (B, B) with the right pairs on the diagonal, "
                f"got {tuple(scores.shape)}."
            )
        known = ids_tensor(NAME, ids, rows, scores.device)
        stored = None
        texts: Stored | None = None
        images: Stored | None = None
        if self.image_bank is not None and self.text_bank is not None:
            if batch is None:
                raise ValueError(
                    f"{NAME}: with a bank the criterion needs the images, captions and lengths "
                    "beside the scores."
                )
            batch = self._checked(batch, rows)
            stored = batch if keys is None else self._checked(keys, None if ids is None else rows)
            # The stored sets are counted on the host anyway; before the end of the warm-up they
            # are not even scored.
            if self.warm is None or bool(self.warm):
                texts = self._against_texts(batch.images, self.text_bank)
                images = self._against_images(batch, self.image_bank)
        total = self._one_way(scores, texts, known) + self._one_way(scores.t(), images, known)
        if stored is not None and training_call(self, scores):
            self._store(stored, known)
        return total

    def _one_way(self, scores: Tensor, stored: Stored | None, ids: Tensor | None) -> Tensor:
        """Summed cost of the queries in the rows of (B, B) scores, and of stored keys."""
        cost = PairCost(self.margin, self.max_violation, self.temperature, self.hardness)
        rows, key_ids = scores.shape[0], None
        if stored is not None:
            scores, key_ids = torch.cat([scores, stored.scores], dim=1), stored.ids
        if cost.temperature is not None:
            return info_nce(scores, ids, key_ids, cost)
        valid = negatives_mask(ids, rows, scores.device)
        if key_ids is not None:
            valid = torch.cat([valid, bank_mask(ids, key_ids, rows)], dim=1)
        return hinge(scores, valid, cost)

    def _checked(self, sets: Fragments, rows: int | None) -> Fragments:
        """Sets that both banks can take, as many as ``rows``, with lengths as a tensor."""
        if self.image_bank is None or self.text_bank is None:
            return sets
        _, regions, dim = self.image_bank.rows.shape
        check_features(NAME, "images", sets.images, (rows, None, dim), "B, R, D")
        if sets.images.shape[1] != regions:
            raise ValueError(
                f"{NAME}: the bank was built for regions={regions}, got images with "
                f"{sets.images.shape[1]}; pass regions={sets.images.shape[1]} at construction."
            )
        rows = sets.images.shape[0]
        check_features(NAME, "captions", sets.captions, (rows, None, dim), "B, L, D")
        check_beside(NAME, "images", sets.images, self.image_bank)
        check_beside(NAME, "captions", sets.captions, self.text_bank)
        device, longest = sets.captions.device, sets.captions.shape[1]
        lengths = lengths_tensor(NAME, sets.lengths, rows, longest, device, least=1)
        return sets._replace(lengths=lengths)

    def _against_texts(self, images: Tensor, bank: FragmentBank) -> Stored | None:
        slots = _stored_sets(bank)
        if slots is None:
            return None
        lengths = bank.lengths[slots]
        words = snapshot(bank.rows[slots, : int(lengths.max())], images.dtype)
        return Stored(self.score(images, words, lengths.clone()), bank.ids[slots])

    def _against_images(self, batch: Fragments, bank: FragmentBank) -> Stored | None:
        slots = _stored_sets(bank)
        if slots is None:
            return None
        regions = snapshot(bank.rows[slots], batch.captions.dtype)
        return Stored(self.score(regions, batch.captions, batch.lengths).t(), bank.ids[slots])

    @torch.no_grad()
    def enqueue(self, keys: Fragments, ids: Tensor | None = None) -> None:
        """Store a batch; the criterion does so itself at the end of a training call."""
        sets = self._checked(Fragments.of("keys", keys), None)
        known = ids_tensor(NAME, ids, len(sets.images), sets.images.device)
        self._store(sets, known)

    @torch.no_grad()
    def _store(self, keys: Fragments, ids: Tensor | None) -> None:
        if self.image_bank is None or self.text_bank is None:
            return
        most = self.text_bank.rows.shape[1]
        lengths = torch.as_tensor(keys.lengths, device=keys.captions.device).clamp(max=most)
        self.image_bank.enqueue(keys.images, None, ids)
        self.text_bank.enqueue(keys.captions[:, :most], lengths, ids)
        self.advance()
