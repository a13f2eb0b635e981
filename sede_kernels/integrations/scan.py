"""SCAN: criterion, cross-attention scores and evaluation with the host's own signatures."""

import sys
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sede_kernels.checks import check_choice, check_count
from sede_kernels.functional import cross_attention_similarity
from sede_kernels.functional.cross_attention import EraseSettings
from sede_kernels.integrations import _ranking
from sede_kernels.integrations._checks import Ids, check_features, check_options, lengths_tensor
from sede_kernels.integrations._fragments import (
    FragmentLoss,
    Fragments,
    Lengths,
    Score,
)
from sede_kernels.integrations._norms import NORMS, plain_similarity

FUSED_NORM = "clipped_l2norm"
AGGREGATES = {"LogSumExp": "lse", "Max": "max", "Sum": "sum", "Mean": "mean"}


class Options(Protocol):
    """What of SCAN's parsed arguments is read here."""

    cross_attn: str
    raw_feature_norm: str
    agg_func: str
    lambda_softmax: float
    lambda_lse: float
    embed_size: int


def _settings(name: str, opt: Options, erase: str | EraseSettings | None) -> dict[str, Any]:
    """What the similarity is told of the host's options."""
    check_options(name, opt, "raw_feature_norm", "agg_func", "lambda_softmax", "lambda_lse")
    check_choice(name, "raw_feature_norm", opt.raw_feature_norm, (FUSED_NORM, *NORMS))
    if opt.agg_func not in AGGREGATES:
        raise ValueError(
            f"{name}: agg_func must be one of {', '.join(AGGREGATES)}, got {opt.agg_func!r}."
        )
    return {
        "smoothing": opt.lambda_softmax,
        "aggregate": AGGREGATES[opt.agg_func],
        "aggregate_scale": opt.lambda_lse if opt.agg_func == "LogSumExp" else 1.0,
        "erase": erase,
    }


def check_settings(settings: dict[str, Any]) -> None:
    """The similarity's own sentence for settings that it cannot take."""
    with torch.device("cpu"):
        one = torch.zeros(1, 1, 1)
        cross_attention_similarity(one, one, backend="torch", **settings)


def words_of(name: str, captions: Tensor, cap_lens: Lengths) -> Tensor:
    """Word counts (n_caption,) of captions (n_caption, max_n_word, d)."""
    check_features(name, "captions", captions, (None, None, None), "n_caption, max_n_word, d")
    return lengths_tensor(name, cap_lens, captions.shape[0], captions.shape[1], captions.device)


def _score(
    direction: str,
    images: Tensor,
    captions: Tensor,
    cap_lens: Lengths,
    opt: Options,
    erase: str | EraseSettings | None,
) -> Tensor:
    name = f"xattn_score_{direction}"
    settings = _settings(name, opt, erase)
    check_features(name, "images", images, (None, None, None), "n_image, n_regions, d")
    lengths = words_of(name, captions, cap_lens)
    if opt.raw_feature_norm != FUSED_NORM:
        return plain_similarity(
            images, captions, lengths, norm=opt.raw_feature_norm, direction=direction, **settings
        )
    return cross_attention_similarity(
        images, captions, word_lengths=lengths, direction=direction, **settings
    )


def xattn_score_t2i(
    images: Tensor,
    captions: Tensor,
    cap_lens: Lengths,
    opt: Options,
    *,
    erase: str | EraseSettings | None = None,
) -> Tensor:
    """SCAN's text-to-image attention score of every pair, without the loop over captions.

    Args:
        images: (n_image, n_regions, d).
        captions: (n_caption, max_n_word, d).
        cap_lens: (n_caption,) words of each caption, a list or a tensor.
        opt: the host's options: ``raw_feature_norm``, ``agg_func``, ``lambda_softmax``,
            ``lambda_lse``. The fused similarity is that of ``clipped_l2norm``; the host's other
            norms are computed in plain PyTorch, with the attention of all pairs.
        erase: attention-guided erasing, see ``cross_attention_similarity``.

    Returns:
        (n_image, n_caption).

    Raises:
        ValueError: a norm or an aggregate that the host does not have.

    Source:
        Lee et al. 2018 (SCAN).
    """
    return _score("t2i", images, captions, cap_lens, opt, erase)


def xattn_score_i2t(
    images: Tensor,
    captions: Tensor,
    cap_lens: Lengths,
    opt: Options,
    *,
    erase: str | EraseSettings | None = None,
) -> Tensor:
    """SCAN's image-to-text attention score of every pair; see ``xattn_score_t2i``."""
    return _score("i2t", images, captions, cap_lens, opt, erase)


class ContrastiveLoss(FragmentLoss):
    """Twin of SCAN's ``ContrastiveLoss(opt, margin, max_violation)``, with banks and weights.

    Without ids, banks, temperature and hardness the value and gradients are the host's: the sum
    over both directions of ``max(0, margin + s- - s+)``. In training (the embeddings carry a
    gradient) each call stores its batch after the loss; validation under ``no_grad`` does not.

    Args:
        opt: the host's options, see ``xattn_score_t2i``; ``cross_attn`` picks the direction.
        margin: of the hinge.
        max_violation: count only the hardest negative of each query.
        erase: attention-guided erasing inside the score.
        score: another score function (images, captions, cap_lens) -> (n_image, n_caption).
        bank_size, regions, max_words, bank_dtype, temperature, hardness, start_step: see
            ``FragmentLoss``; the width of the banks is ``opt.embed_size``.

    Example:
        >>> from types import SimpleNamespace
        >>> opt = SimpleNamespace(cross_attn="t2i", raw_feature_norm="clipped_l2norm",
        ...     agg_func="Mean", lambda_softmax=9.0, lambda_lse=6.0, embed_size=4)
        >>> criterion = ContrastiveLoss(opt, margin=0.2, max_violation=True, bank_size=8)
        >>> image = torch.randn(3, 36, 4, requires_grad=True)
        >>> loss = criterion(image, torch.randn(3, 5, 4), [5, 3, 2], ids=[0, 1, 2])
        >>> len(criterion.text_bank)
        3
    """

    def __init__(
        self,
        opt: Options,
        margin: float = 0,
        max_violation: bool = False,
        *,
        erase: str | EraseSettings | None = None,
        score: Score | None = None,
        bank_size: int = 0,
        **settings: Any,
    ) -> None:
        if score is None:
            score = self._default_score(opt, erase)
        dim = None
        if bank_size:
            check_options(type(self).__name__, opt, "embed_size")
            dim = opt.embed_size
        super().__init__(
            margin, max_violation, score=score, bank_size=bank_size, dim=dim, **settings
        )
        self.opt = opt

    @staticmethod
    def _default_score(opt: Options, erase: str | EraseSettings | None) -> Score:
        check_options("ContrastiveLoss", opt, "cross_attn")
        if opt.cross_attn not in ("t2i", "i2t"):
            raise ValueError(
                f"ContrastiveLoss: opt.cross_attn must be t2i or i2t, got {opt.cross_attn!r}."
            )
        check_settings(_settings("ContrastiveLoss", opt, erase))
        return partial(_score, opt.cross_attn, opt=opt, erase=erase)

    def forward(
        self,
        im: Tensor,
        s: Tensor,
        s_l: Lengths,
        ids: Ids | None = None,
        *,
        keys: Fragments | tuple[Tensor, Tensor, Lengths] | None = None,
    ) -> Tensor:
        """Summed loss.

        Args:
            im: (B, R, D) regions.
            s: (B, L, D) words.
            s_l: (B,) words of each caption.
            ids: (B,) image of each pair (SCAN: caption id // 5); None as the host.
            keys: a momentum encoder's (im, s, s_l) to store instead.

        Returns:
            Scalar.
        """
        batch = Fragments(im, s, s_l)
        stored = None if keys is None else Fragments.of("keys", keys)
        return self.loss(self.score(im, s, s_l), batch, ids, stored)


@torch.inference_mode()
def shard_scores(
    name: str,
    score: Score,
    images: ArrayLike,
    captions: ArrayLike,
    caplens: Lengths,
    shard_size: int,
) -> NDArray[np.float32]:
    """(n_image, n_caption) scores in float32, a block at a time, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shard_size = check_count(name, "shard_size", shard_size, least=1)
    regions = _ranking.numbers(name, "images", images)
    words = _ranking.numbers(name, "captions", captions)
    if regions.ndim != 3 or words.ndim != 3 or regions.shape[2] != words.shape[2]:
        raise ValueError(
            f"{name}: images must be (N, R, D) and captions (C, L, D), got {regions.shape} and "
            f"{words.shape}."
        )
    lengths = lengths_tensor(name, caplens, words.shape[0], words.shape[1], torch.device("cpu"))
    out = np.empty((len(regions), len(words)), np.float32)
    for top in range(0, len(regions), shard_size):
        rows = slice(top, top + shard_size)
        image = torch.as_tensor(regions[rows], dtype=torch.float32, device=device)
        for left in range(0, len(words), shard_size):
            columns = slice(left, left + shard_size)
            longest = max(int(lengths[columns].max()), 1)
            text = torch.as_tensor(words[columns, :longest], dtype=torch.float32, device=device)
            out[rows, columns] = score(image, text, lengths[columns].to(device)).cpu().numpy()
            print(f"\r>> {name} {top + len(image)}/{len(regions)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return out


def shard_xattn_t2i(
    images: ArrayLike, captions: ArrayLike, caplens: Lengths, opt: Options, shard_size: int = 128
) -> NDArray[np.float32]:
    """All t2i scores of an evaluation set, block by block; the host's signature, float32.

    Args:
        images: (N, R, D) array.
        captions: (C, L, D) array.
        caplens: (C,) words of each caption.
        opt: see ``xattn_score_t2i``.
        shard_size: images and captions in each block.

    Returns:
        (N, C) float32.
    """
    return shard_scores(
        "shard_xattn_t2i",
        lambda i, c, n: xattn_score_t2i(i, c, n, opt),
        images,
        captions,
        caplens,
        shard_size,
    )


def shard_xattn_i2t(
    images: ArrayLike, captions: ArrayLike, caplens: Lengths, opt: Options, shard_size: int = 128
) -> NDArray[np.float32]:
    """All i2t scores of an evaluation set; see ``shard_xattn_t2i``."""
    return shard_scores(
        "shard_xattn_i2t",
        lambda i, c, n: xattn_score_i2t(i, c, n, opt),
        images,
        captions,
        caplens,
        shard_size,
    )


def i2t(
    images: ArrayLike,
    captions: ArrayLike,
    caplens: Lengths | None,
    sims: ArrayLike,
    npts: int | None = None,
    return_ranks: bool = False,
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Image-to-text recall from (N, m N) scores, without sorting a row.

    Args:
        images: accepted as in the host, not read.
        captions: accepted as in the host, not read.
        caplens: accepted as in the host, not read.
        sims: (N, m N) scores, the m captions of an image side by side; m is inferred.
        npts: accepted as in the host, not read.
        return_ranks: also return the ranks (from 0) and the top answers.

    Returns:
        (R@1, R@5, R@10 in percent, median rank, mean rank), and with ``return_ranks`` also
        (ranks, top1). Wrong answers that tie with the best right one count as ahead of it.
    """
    return _ranking.image_to_text("i2t", sims, return_ranks)


def t2i(
    images: ArrayLike,
    captions: ArrayLike,
    caplens: Lengths | None,
    sims: ArrayLike,
    npts: int | None = None,
    return_ranks: bool = False,
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Text-to-image recall from (N, m N) scores; see ``i2t``."""
    return _ranking.text_to_image("t2i", sims, return_ranks)
