"""BFAN: focal attention is attention-guided erasing; both directions, means added."""

from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sede_kernels.functional import cross_attention_similarity
from sede_kernels.functional.cross_attention import EraseSettings
from sede_kernels.integrations import _ranking, scan
from sede_kernels.integrations._checks import check_features, check_options
from sede_kernels.integrations._fragments import Lengths, Score

FOCAL_RULES = {"equal": "mean", "prob": "prob"}


class Options(Protocol):
    """What of BFAN's parsed arguments is read here."""

    focal_type: str
    lambda_softmax: float
    embed_size: int


def xattn_score(
    images: Tensor,
    captions: Tensor,
    cap_lens: Lengths,
    opt: Options,
    *,
    erase: str | EraseSettings | None = None,
) -> Tensor:
    """BFAN's score of every pair: mean cosine of both directions after focal attention, added.

    Args:
        images: (n_image, n_regions, d).
        captions: (n_caption, max_n_word, d).
        cap_lens: (n_caption,) words of each caption.
        opt: the host's options: ``focal_type`` (``equal`` or ``prob``), ``lambda_softmax``.
        erase: another rule in place of ``focal_type``.

    Returns:
        (n_image, n_caption). Unlike the host, a row whose rule keeps nothing (uniform attention)
        keeps its largest fragment instead of dividing by zero.

    Source:
        Liu et al. 2019 (BFAN).
    """
    return _score(images, captions, cap_lens, _settings("xattn_score", opt, erase))


def _settings(name: str, opt: Options, erase: str | EraseSettings | None) -> dict[str, Any]:
    """What the similarity is told of the host's options."""
    check_options(name, opt, "lambda_softmax")
    if erase is None:
        check_options(name, opt, "focal_type")
        if opt.focal_type not in FOCAL_RULES:
            raise ValueError(
                f"{name}: opt.focal_type must be equal or prob, got {opt.focal_type!r}."
            )
        erase = FOCAL_RULES[opt.focal_type]
    return {"smoothing": opt.lambda_softmax, "aggregate": "mean", "erase": erase}


def _score(images: Tensor, captions: Tensor, cap_lens: Lengths, settings: dict[str, Any]) -> Tensor:
    check_features("xattn_score", "images", images, (None, None, None), "n_image, n_regions, d")
    lengths = scan.words_of("xattn_score", captions, cap_lens)
    t2i_score, i2t_score = (
        cross_attention_similarity(
            images, captions, word_lengths=lengths, direction=direction, **settings
        )
        for direction in ("t2i", "i2t")
    )
    return t2i_score + i2t_score


class ContrastiveLoss(scan.ContrastiveLoss):
    """Twin of BFAN's ``ContrastiveLoss(opt, margin, max_violation)``; see the one of ``scan``."""

    @staticmethod
    def _default_score(opt: Options, erase: str | EraseSettings | None) -> Score:  # type: ignore[override]
        scan.check_settings(_settings("ContrastiveLoss", opt, erase))
        return partial(xattn_score, opt=opt, erase=erase)


def shard_xattn(
    images: ArrayLike, captions: ArrayLike, caplens: Lengths, opt: Options, shard_size: int = 128
) -> NDArray[np.float32]:
    """All scores of an evaluation set, block by block; see ``scan.shard_xattn_t2i``."""
    return scan.shard_scores(
        "shard_xattn",
        lambda i, c, n: xattn_score(i, c, n, opt),
        images,
        captions,
        caplens,
        shard_size,
    )


def i2t(
    npts: int, sims: ArrayLike, return_ranks: bool = False
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Image-to-text recall from (N, m N) scores; see ``scan.i2t``."""
    return _ranking.image_to_text("i2t", sims, return_ranks)


def t2i(
    npts: int, sims: ArrayLike, return_ranks: bool = False
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Text-to-image recall from (N, m N) scores; see ``scan.i2t``."""
    return _ranking.text_to_image("t2i", sims, return_ranks)
