"""Region-word similarity of each query with its own candidates."""

from torch import Tensor

from sede_kernels import ops, reference, reference_late
from sede_kernels.checks import check_backend, shape_of
from sede_kernels.fragment_types import Fragments, LateInteraction
from sede_kernels.functional.cross_attention import (
    SMOOTHING,
    EraseSettings,
    check_call,
    late_at_once,
    reference_keywords,
    widened,
    will_learn,
)


def cross_attention_pairs(
    regions: Tensor,
    words: Tensor,
    *,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    direction: str = "t2i",
    smoothing: float = SMOOTHING,
    aggregate: str = "lse",
    aggregate_scale: float = 6.0,
    erase: str | EraseSettings | None = None,
    attention: str = "softmax",
    backend: str = "auto",
) -> Tensor:
    r"""``cross_attention_similarity`` of chosen pairs: each query with N candidates of its own.

    For hard negatives that a bank search found, one list a query, and for ranking the best results
    of a cheaper model again: B N pairs instead of B times all candidates.

    Args:
        regions: (B, N, R, D) float32, bfloat16, float16 or float64; (B, 1, R, D) where the queries
            are images, each compared with N captions.
        words: (B, N, L, D), same dtype and device; (B, 1, L, D) where the queries are captions.
        region_lengths: (B, N or 1) integers in [0, R], as ``regions``; None: all R are valid.
        word_lengths: (B, N or 1) integers in [0, L], as ``words``; None: all L are valid.
        direction: ``t2i`` or ``i2t``; this and the following as in
            :func:`cross_attention_similarity`.
        smoothing: lambda > 0 of the softmax.
        aggregate: ``lse``, ``mean``, ``max`` or ``sum``.
        aggregate_scale: lambda_lse > 0, used by ``lse`` only.
        erase: None, a rule name without threshold, or an ``AttentionErase``.
        attention: ``softmax``, or ``max`` for late interaction, by ``reference``, ``torch`` and
            ``cpu``.
        backend: ``auto``, ``reference``, ``torch``, ``cpu`` or ``triton``.

    Returns:
        (B, N) similarities, float32 (float64 for float64 inputs). A pair with an empty side is 0,
        with a zero gradient.

    Raises:
        ValueError, TypeError: shapes, dtypes, names or numbers out of range.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        At most 4 BNRLD FLOPs forward: S and the contexts, formed outright, since with few queries
        a set they cost less than the Gram matrix of the sources. Backend ``cpu`` goes pair by pair,
        needs no memory beyond one, and takes the Gram matrix where a pair has fewer sources than
        queries; ``torch`` holds all pairs at once.

    Gradients:
        regions and words; the erasing mask is a constant. The backward computes S again.

    Source:
        As ``cross_attention_similarity``.

    Example:
        >>> import torch
        >>> image, captions = torch.ones(1, 1, 2, 4), torch.ones(1, 3, 1, 4)
        >>> cross_attention_pairs(image, captions, aggregate="mean")
        tensor([[1., 1., 1.]])
    """
    if attention == "max" and erase is None and smoothing is SMOOTHING:
        plain = Fragments(regions, words, region_lengths, word_lengths)
        found = late_at_once(plain, 4, direction, aggregate, aggregate_scale, backend)
        if found is not None:
            return found
    name = "cross_attention_pairs"
    sides, how = check_call(
        name,
        regions,
        words,
        ndim=4,
        region_lengths=region_lengths,
        word_lengths=word_lengths,
        direction=direction,
        smoothing=smoothing,
        aggregate=aggregate,
        aggregate_scale=aggregate_scale,
        erase=erase,
        attention=attention,
    )
    (batch, of_regions), (others, of_words) = regions.shape[:2], words.shape[:2]
    if batch != others or (of_regions != of_words and 1 not in (of_regions, of_words)):
        raise ValueError(
            f"{name}: regions and words must be (B, N, ...) with the same B and N, or N = 1 on one "
            f"side, got {shape_of(regions)} and {shape_of(words)}."
        )
    chosen = check_backend(name, backend, regions, words)
    if isinstance(how, LateInteraction):
        if chosen == "reference":
            return reference_late.late_interaction_pairs(*widened(sides), *how)
        keep = will_learn(sides)
        return ops.late_interaction.late_interaction_pairs(sides, how, keep, chosen).similarity
    if chosen == "reference":
        wide = widened(sides)
        return reference.cross_attention_pairs(*wide[:2], **reference_keywords(wide, how))
    return ops.cross_attention_pairs.cross_attention_pairs(sides, how, chosen)
