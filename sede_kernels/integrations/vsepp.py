"""VSE++ and VSRN: the hinge on one vector a side, with memory banks and weights."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import check_choice, check_count
from sede_kernels.functional import hardest_negatives, symmetric_info_nce
from sede_kernels.integrations import _ranking
from sede_kernels.integrations._banked import snapshot, training_call
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_features,
    check_stored,
    described,
    ids_tensor,
)
from sede_kernels.integrations._scores import (
    PairCost,
    bank_mask,
    check_pair_cost,
    hinge,
    negatives_mask,
)
from sede_kernels.warmup import WarmUp

MEASURES = ("cosine", "order")
NAME = "ContrastiveLoss"
Bank = MemoryBank | BankView


def order_similarity(im: Tensor, s: Tensor) -> Tensor:
    """(n_image, n_caption) order-embedding scores ``-|max(0, s - im)|``; zero has gradient 0."""
    excess = (s.unsqueeze(0) - im.unsqueeze(1)).clamp(min=0)
    scores: Tensor = -torch.linalg.vector_norm(excess, dim=2)
    return scores


def _dense(bank: Bank, slots: Tensor | slice, dtype: torch.dtype) -> Tensor:
    """A copy of the rows in these slots, scales applied; empty slots are as they come."""
    found: Tensor = snapshot(bank.rows[slots], dtype)
    if bank.row_scale is None:
        return found
    scale: Tensor = snapshot(bank.row_scale[slots], dtype)
    return found * scale.unsqueeze(1)


class ContrastiveLoss(WarmUp):
    """Twin of VSE++'s ``ContrastiveLoss(margin, measure, max_violation)``, banks and weights.

    Without ids, banks, temperature and hardness the value and gradients are the host's: the sum
    over both directions of ``max(0, margin + s- - s+)``, of the hardest negative only with
    ``max_violation``. In training (the embeddings carry a gradient) each call stores its batch
    after the loss; validation under ``no_grad`` does not.

    Args:
        margin: of the hinge.
        measure: ``order`` for order embeddings; ``cosine`` (or False) for the inner product.
        max_violation: count only the hardest negative of each query.
        bank_size: vectors kept a modality; 0 for no bank.
        dim: D, width of the embeddings; needed with a bank.
        bank_dtype: see ``MemoryBank``; stored as they come, unit or not.
        temperature: None for the hinge, a number for the weighted InfoNCE (summed).
        hardness: beta >= 0 in cosine units, weights n softmax(beta s), detached; of no
            effect on a single hardest negative.
        start_step: enqueues before the banks take part.

    Cost:
        The hardest negatives and the InfoNCE read the bank without a B x K matrix; the hinge over
        all negatives builds one.

    Source:
        Faghri et al. 2018 (VSE++).

    Example:
        >>> criterion = ContrastiveLoss(margin=0.2, max_violation=True, bank_size=8, dim=4)
        >>> image = torch.eye(4).requires_grad_()
        >>> loss = criterion(image, torch.eye(4), ids=[0, 1, 2, 3])
        >>> len(criterion.image_bank)
        4
    """

    def __init__(
        self,
        margin: float = 0,
        measure: str | bool = False,
        max_violation: bool = False,
        *,
        bank_size: int = 0,
        dim: int | None = None,
        bank_dtype: torch.dtype = torch.float32,
        temperature: float | None = None,
        hardness: float = 0.0,
        start_step: int = 0,
    ) -> None:
        super().__init__(start_step)
        settings = check_pair_cost(NAME, margin, max_violation, temperature, hardness)
        self.margin, self.max_violation, self.temperature, self.hardness = settings
        check_choice(NAME, "measure", measure, (*MEASURES, False, True, None))
        self.order = measure == "order"
        size, width = check_bank_settings(NAME, bank_size, dim, bank_dtype)
        self.image_bank: MemoryBank | None = None
        self.text_bank: MemoryBank | None = None
        if self.order and (size or temperature is not None):
            raise ValueError(
                "ContrastiveLoss: banks and temperature need the inner product; "
                "measure='order' has the plain hinge only."
            )
        if size:
            self.image_bank = MemoryBank(size, width, dtype=bank_dtype, normalize=False)
            self.text_bank = MemoryBank(size, width, dtype=bank_dtype, normalize=False)

    def extra_repr(self) -> str:
        """The settings of the criterion."""
        return (
            f"margin={self.margin}, max_violation={self.max_violation}, "
            f"temperature={self.temperature}, hardness={self.hardness}"
        )

    def forward(
        self,
        im: Tensor,
        s: Tensor,
        ids: Ids | None = None,
        *,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Summed loss.

        Args:
            im: (B, D) image embeddings.
            s: (B, D) caption embeddings.
            ids: (B,) image of each pair; pairs of one image are no negatives. None as the host.
            keys: a momentum encoder's (im, s) to store instead.

        Returns:
            Scalar.
        """
        check_features(NAME, "im", im, (None, None))
        check_features(NAME, "s", s, (None, None))
        if im.shape != s.shape:
            raise ValueError(
                f"{NAME}: im and s must both be (B, D), got {tuple(im.shape)} and {tuple(s.shape)}."
            )
        known = ids_tensor(NAME, ids, im.shape[0], im.device)
        stored = self._keys((im, s) if keys is None else keys, known)
        warm = self.warm
        texts, images = (
            None if bank is None else bank.view() if warm is None else bank.where(warm)
            for bank in (self.text_bank, self.image_bank)
        )
        if self.temperature is not None:
            total = 2 * symmetric_info_nce(
                im,
                s,
                im,
                s,
                images,
                texts,
                temperature=self.temperature,
                hardness=self.hardness,
                ids=known,
                in_batch_negatives=True,
                reduction="sum",
            )
        else:
            scores = order_similarity(im, s) if self.order else im @ s.t()
            total = self._hinge(im, scores, texts, known)
            total = total + self._hinge(s, scores.t(), images, known)
        if self.image_bank is not None and training_call(self, im, s):
            self.enqueue(*stored, known)
        return total

    def _keys(self, keys: tuple[Tensor, Tensor], ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is to be stored, checked before anything is."""
        if not isinstance(keys, tuple | list) or len(keys) != 2:
            raise TypeError(f"{NAME}: keys must be (im, s), two tensors, got {described(keys)}.")
        im, s = keys
        check_stored(NAME, [("im", im, self.image_bank), ("s", s, self.text_bank)], ids)
        return im, s

    def _hinge(
        self, query: Tensor, scores: Tensor, bank: Bank | None, ids: Tensor | None
    ) -> Tensor:
        rows = scores.shape[0]
        valid = negatives_mask(ids, rows, scores.device)
        if bank is not None:
            if self.max_violation:
                extra, seen = self._hardest(query, bank, ids)
            else:
                extra = query @ _dense(bank, slice(None), query.dtype).t()
                seen = bank_mask(ids, bank.ids, rows)
            scores, valid = torch.cat([scores, extra], 1), torch.cat([valid, seen], 1)
        cost = PairCost(self.margin, self.max_violation, None, self.hardness)
        return hinge(scores, valid, cost)

    @staticmethod
    def _hardest(query: Tensor, bank: Bank, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Score (B, 1) of the hardest stored negative and whether there is one."""
        _, index = hardest_negatives(query.detach(), bank, 1, query_ids=ids)
        # The product again on copied rows: the gradient needs them as they are now.
        found = _dense(bank, index[:, 0].clamp(min=0), query.dtype)
        return (query * found).sum(dim=1, keepdim=True), index >= 0

    @torch.no_grad()
    def enqueue(self, im: Tensor, s: Tensor, ids: Tensor | None = None) -> None:
        """Store a batch; the criterion does so itself at the end of a training call."""
        if self.image_bank is None or self.text_bank is None:
            return
        im, s = self._keys((im, s), ids)
        self.image_bank.enqueue(im, ids)
        self.text_bank.enqueue(s, ids)
        self.advance()


@torch.inference_mode()
def _scores(images: ArrayLike, captions: ArrayLike, npts: int | None, measure: str) -> Any:
    """(N, C) scores of images that come repeated, one per caption."""
    check_choice("i2t", "measure", measure, MEASURES)
    im, s = _ranking.vectors("i2t", images, captions)
    if len(im) != len(s):
        raise ValueError(
            "i2t: images must come repeated, one row per caption, got "
            f"{len(im)} images and {len(s)} captions."
        )
    each = len(im) // check_count("i2t", "npts", npts, least=1) if npts is not None else 5
    if not each or len(im) % each:
        raise ValueError(f"i2t: {len(im)} rows do not divide into groups of {each} captions.")
    im = im[::each]
    if measure == "order":
        return torch.cat([order_similarity(part, s) for part in torch.split(im, 16)]).numpy()
    return (im @ s.t()).numpy()


def i2t(
    images: ArrayLike,
    captions: ArrayLike,
    npts: int | None = None,
    measure: str = "cosine",
    return_ranks: bool = False,
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Image-to-text recall; images (5N, D) come repeated as in the host; see ``scan.i2t``."""
    sims: NDArray[np.float32] = _scores(images, captions, npts, measure)
    return _ranking.image_to_text("i2t", sims, return_ranks)


def t2i(
    images: ArrayLike,
    captions: ArrayLike,
    npts: int | None = None,
    measure: str = "cosine",
    return_ranks: bool = False,
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Text-to-image recall; images (5N, D) come repeated as in the host; see ``scan.i2t``."""
    sims: NDArray[np.float32] = _scores(images, captions, npts, measure)
    return _ranking.text_to_image("t2i", sims, return_ranks)
