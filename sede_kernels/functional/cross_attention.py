"""Region-word similarity of all image-caption pairs."""

from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sede_kernels import ops, reference, reference_late
from sede_kernels.backends.registry import requested, serves_natively
from sede_kernels.checks import (
    check_backend,
    check_choice,
    check_float_matrix,
    check_lengths,
    check_number,
    check_same_device,
    shape_of,
)
from sede_kernels.erase_checks import check_erase
from sede_kernels.fragment_types import Attend, Erase, Fragments, LateInteraction
from sede_kernels.ops.transforms import nothing_looks_on
from sede_kernels.types import result_dtype

SMOOTHING = 9.0  # SCAN's on Flickr30K, t2i
_FEW_PAIRS, _FEW_SETS = 16, 6  # pairs, or sets of either side: most of a tile would be empty
_SOME_PAIRS = 64  # whose copies of a shared side are small


@runtime_checkable
class EraseSettings(Protocol):
    """What ``erase=`` needs besides a rule name: the attributes of ``AttentionErase``."""

    rule: str
    threshold: float | None
    erase: str
    keep_min: int
    renormalize: bool


def erase_settings(name: str, erase: str | EraseSettings | None, fragments: int) -> Erase | None:
    """The rule of ``erase=``, checked.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    if erase is None:
        return None
    if isinstance(erase, str):
        return check_erase(name, rule=erase, length=fragments)
    if not isinstance(erase, EraseSettings):
        raise TypeError(
            f"{name}: erase must be None, a rule name or an AttentionErase, "
            f"got {type(erase).__name__}."
        )
    return check_erase(
        name,
        rule=erase.rule,
        length=fragments,
        threshold=erase.threshold,
        erase=erase.erase,
        keep_min=erase.keep_min,
        renormalize=erase.renormalize,
    )


def widened(sides: Fragments) -> Fragments:
    """The sets in the dtype of the results, in which the specification computes."""
    dtype = result_dtype(sides.regions)
    return sides._replace(regions=sides.regions.to(dtype), words=sides.words.to(dtype))


def reference_keywords(sides: Fragments, how: Attend) -> dict[str, Any]:
    """The arguments of :mod:`sede_kernels.reference` besides the regions and words."""
    erase = None if how.erase is None else how.erase._asdict()
    if erase is not None:
        erase["erase"] = erase.pop("side")
    lengths = {"region_lengths": sides.region_lengths, "word_lengths": sides.word_lengths}
    return {**lengths, **how._asdict(), "erase": erase}


def check_similarity(
    name: str,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    attention: str,
    erase: str | EraseSettings | None,
) -> tuple[float, float]:
    """Smoothing and scale as floats; what can be said without a tensor.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    check_choice(name, "direction", direction, ("t2i", "i2t"))
    check_choice(name, "aggregate", aggregate, ("lse", "mean", "max", "sum"))
    check_choice(name, "attention", attention, ("softmax", "max"))
    if attention == "max" and (smoothing != SMOOTHING or erase is not None):
        raise ValueError(
            f"{name}: attention='max' has no softmax to smooth and nothing to erase, got "
            f"smoothing={smoothing} and erase={erase!r}; leave both out."
        )
    return (
        check_number(name, "smoothing", smoothing, low=0.0, open_low=True),
        check_number(name, "aggregate_scale", aggregate_scale, low=0.0, open_low=True),
    )


@lru_cache(maxsize=256, typed=True)
def _late(direction: str, aggregate: str, scale: float) -> LateInteraction:
    checked = check_similarity("", direction, SMOOTHING, aggregate, scale, "max", None)
    return LateInteraction(direction, aggregate, checked[1])


def late_at_once(
    sides: Fragments,
    ndim: int,
    direction: str,
    aggregate: str,
    aggregate_scale: float,
    backend: str,
) -> Tensor | None:
    """Late interaction of arguments that fit as they came, else None: then the checks look."""
    if not (nothing_looks_on() and serves_natively(backend)):
        return None
    if not isinstance(sides.regions, Tensor) or sides.regions.ndim != ndim:
        return None
    if type(aggregate_scale) not in (int, float):
        return None
    try:
        how = _late(direction, aggregate, aggregate_scale)
    except (TypeError, ValueError):
        return None  # the checks find it again, in their order
    return ops.late_interaction.at_once(sides, how, backend)


def check_call(
    name: str,
    regions: Tensor,
    words: Tensor,
    *,
    ndim: int,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: str | EraseSettings | None,
    attention: str,
) -> tuple[Fragments, Attend | LateInteraction]:
    """The arguments of the similarities of all pairs and of chosen pairs, checked alike."""
    check_float_matrix(name, "regions", regions, ndim=ndim)
    check_float_matrix(name, "words", words, ndim=ndim)
    if regions.shape[-1] != words.shape[-1]:
        sizes = "C, L" if ndim == 3 else "B, N, L"
        raise ValueError(
            f"{name}: words must be ({sizes}, {regions.shape[-1]}) to match regions, "
            f"got {shape_of(words)}."
        )
    if regions.dtype != words.dtype:
        raise TypeError(
            f"{name}: regions and words must share a dtype, got {regions.dtype} and {words.dtype}."
        )
    smoothing, scale = check_similarity(
        name, direction, smoothing, aggregate, aggregate_scale, attention, erase
    )
    (*of_regions, most_regions, _), (*of_words, most_words, _) = regions.shape, words.shape
    region_counts = check_lengths(
        name, "region_lengths", region_lengths, tuple(of_regions), most_regions
    )
    word_counts = check_lengths(name, "word_lengths", word_lengths, tuple(of_words), most_words)
    check_same_device(
        name, regions, words=words, region_lengths=region_counts, word_lengths=word_counts
    )
    sides = Fragments(regions, words, region_counts, word_counts)
    if attention == "max":
        return sides, LateInteraction(direction, aggregate, scale)
    sources = most_regions if direction == "t2i" else most_words
    settings = erase_settings(name, erase, sources)
    return sides, Attend(direction, smoothing, aggregate, scale, settings)


def cross_attention_similarity(
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
    r"""SCAN's similarity of every image with every caption, without context vectors in memory.

    For one pair with S = V E^T: x = leaky_relu(S, 0.1), L2-normalised over the query axis (+1e-8);
    a = softmax over the source axis of ``smoothing`` x, erased if asked; context = sum a source;
    cosine(query, context) (clamped at 1e-8), aggregated over the queries. ``t2i``: queries are
    words, sources are regions; ``i2t`` the other way. Uses q.context = sum a s and
    ``|context|^2 = a^T G a`` with G the Gram matrix of the sources.

    Args:
        regions: (B, R, D) float32, bfloat16, float16 or float64.
        words: (C, L, D), same dtype and device.
        region_lengths: (B,) integers in [0, R]; None: all R regions are valid.
        word_lengths: (C,) integers in [0, L]; None: all L words are valid.
        direction: ``t2i`` or ``i2t``.
        smoothing: lambda > 0 of the softmax (SCAN on Flickr30K: 9 for t2i, 4 for i2t; BFAN 20).
        aggregate: ``lse`` (log sum exp(scale x) / scale), ``mean``, ``max`` or ``sum``.
        aggregate_scale: lambda_lse > 0, used by ``lse`` only.
        erase: None, a rule name without threshold (``mean``, ``prob``), or an ``AttentionErase``;
            acts on the attention of each query over its sources.
        attention: ``softmax``, or ``max``: a query's score is then the largest of its dot products
            with the sources, without any norm, and ``smoothing`` and ``erase`` are refused. With
            ``aggregate="sum"`` that is late interaction (ColBERT's MaxSim) of words as queries and
            regions as documents. The first of equal sources gets the gradient; a NaN makes its
            pairs NaN. Backends ``auto``, ``reference``, ``torch`` and ``cpu`` serve it.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.

    Returns:
        (B, C) similarities, float32 (float64 for float64 inputs). A pair with an empty side is 0,
        with a zero gradient.

    Raises:
        ValueError, TypeError: shapes, dtypes, names or numbers out of range.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        2 BRCLD FLOPs forward and O(R^2) more a word (t2i); S exists one block at a time, so memory
        is bounded for any B and C. The backward of the CPU kernels keeps an S of up to 64 MB and
        computes a larger one again, as the other backends always do; a side that needs no gradient
        costs it nothing. On a CPU few pairs (at most 16, or 6 sets of either side) are computed as
        by :func:`cross_attention_pairs`, and so is a pair in which attended vectors cancel. With
        ``attention="max"`` the CPU kernels keep a score and an index for each query fragment and
        source set, up to 64 MB of them, and the backward is O(BCLD) (t2i).

    Gradients:
        regions and words; the erasing mask is a constant.

    Source:
        Lee et al. 2018 (SCAN), Liu et al. 2019 (BFAN); the Gram form: docs/method.md. Khattab and
        Zaharia 2020 (ColBERT) for ``attention="max"``.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, 4)
        >>> cross_attention_similarity(one, one, aggregate="mean")
        tensor([[1.]])
    """
    if attention == "max" and erase is None and smoothing is SMOOTHING:
        plain = Fragments(regions, words, region_lengths, word_lengths)
        found = late_at_once(plain, 3, direction, aggregate, aggregate_scale, backend)
        if found is not None:
            return found
    name = "cross_attention_similarity"
    sides, how = check_call(
        name,
        regions,
        words,
        ndim=3,
        region_lengths=region_lengths,
        word_lengths=word_lengths,
        direction=direction,
        smoothing=smoothing,
        aggregate=aggregate,
        aggregate_scale=aggregate_scale,
        erase=erase,
        attention=attention,
    )
    chosen = check_backend(name, backend, regions, words)
    if isinstance(how, LateInteraction):
        if chosen == "reference":
            return reference_late.late_interaction(*widened(sides), *how)
        keep = will_learn(sides)
        return ops.late_interaction.late_interaction(sides, how, keep, chosen).similarity
    if chosen == "reference":
        wide = widened(sides)
        return reference.cross_attention_similarity(*wide[:2], **reference_keywords(wide, how))
    if requested(chosen) != "triton" and _few(regions, words, direction):
        return _side_by_side(sides, how, chosen)
    return ops.cross_attention.cross_attention(sides, how, will_learn(sides), chosen).similarity


def will_learn(sides: Fragments) -> bool:
    """Whether a backward may be asked for."""
    return torch.is_grad_enabled() and (sides.regions.requires_grad or sides.words.requires_grad)


def _few(regions: Tensor, words: Tensor, direction: str) -> bool:
    """Whether all pairs cost less as chosen ones.

    So do few pairs, and where the sources have more fragments than all queries together: their Gram
    matrices would cost more than the contexts.
    """
    images, captions = regions.shape[0], words.shape[0]
    queries, sources = (words, regions) if direction == "t2i" else (regions, words)
    lean = queries.shape[0] * queries.shape[1] <= sources.shape[1]
    few = images * captions <= (_SOME_PAIRS if lean else _FEW_PAIRS)
    few = few or max(images, captions) <= _FEW_SETS
    return regions.device.type == "cpu" and images * captions > 0 and few


def _side_by_side(sides: Fragments, how: Attend, backend: str) -> Tensor:
    """All pairs as chosen ones: (B, 1) images beside (B, C) captions, or (1, B) beside (1, 1)."""
    regions, words, region_lengths, word_lengths = sides
    images, captions = regions.shape[0], words.shape[0]
    axis, rows = (0, 1) if captions == 1 else (1, images)

    def captions_of(sets: Tensor) -> Tensor:
        # The backward of an expansion adds up, even over one row; that of a view costs nothing.
        return sets.unsqueeze(0) if rows == 1 else sets.expand(rows, *sets.shape)

    beside = Fragments(
        regions.unsqueeze(axis),
        captions_of(words),
        None if region_lengths is None else region_lengths.unsqueeze(axis),
        None if word_lengths is None else captions_of(word_lengths),
    )
    found = ops.cross_attention_pairs.cross_attention_pairs(beside, how, backend)
    return found if rows == images else found.view(images, captions)
