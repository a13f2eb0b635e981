"""Region-word similarity of all image-caption pairs (SCAN, BFAN) without the context vectors.

A backend may keep S for the backward, where the caller will want one (``keep``) and S is small: its
``cross_attention_kept`` says how many elements, from the shapes alone.
"""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.transforms import once
from sede_kernels.types import result_dtype

EraseOptions = tuple[str, float, bool, int, bool]


def erase_options(
    rule: str, threshold: float, low: bool, keep_min: int, renormalize: bool
) -> EraseOptions | None:
    """What backends take as ``erase``: None for an empty rule."""
    return (rule, threshold, low, keep_min, renormalize) if rule else None


def _room(regions: Tensor, words: Tensor, keep: bool, backend: str) -> Tensor:
    size = resolve("cross_attention_kept", backend, regions, words)(regions, words) if keep else 0
    return regions.new_empty((size,), dtype=result_dtype(regions))


@torch.library.custom_op("sede::cross_attention", mutates_args=())
def cross_attention(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase_rule: str,
    erase_threshold: float,
    erase_low: bool,
    erase_keep_min: int,
    erase_renormalize: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(similarities [B, C], kept S, flat); ``erase_rule`` is empty where nothing is erased."""
    run = resolve("cross_attention", backend, regions, words)
    kept = _room(regions, words, keep, backend)
    similarity: Tensor = run(
        regions,
        words,
        region_lengths,
        word_lengths,
        direction=direction,
        smoothing=smoothing,
        aggregate=aggregate,
        aggregate_scale=aggregate_scale,
        erase=erase_options(
            erase_rule, erase_threshold, erase_low, erase_keep_min, erase_renormalize
        ),
        kept=kept,
    )
    return similarity, kept


@cross_attention.register_fake
def _(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase_rule: str,
    erase_threshold: float,
    erase_low: bool,
    erase_keep_min: int,
    erase_renormalize: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    similarity = regions.new_empty((regions.shape[0], words.shape[0]), dtype=result_dtype(regions))
    return similarity, _room(regions, words, keep, backend)


@torch.library.custom_op("sede::cross_attention_backward", mutates_args=())
def cross_attention_backward(
    grad: Tensor,
    kept: Tensor,
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase_rule: str,
    erase_threshold: float,
    erase_low: bool,
    erase_keep_min: int,
    erase_renormalize: bool,
    for_regions: bool,
    for_words: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(d_regions [B, R, D], d_words [C, L, D]); one that is not asked for is empty."""
    run = resolve("cross_attention_backward", backend, regions, words)
    d_regions, d_words = run(
        grad,
        regions,
        words,
        region_lengths,
        word_lengths,
        direction=direction,
        smoothing=smoothing,
        aggregate=aggregate,
        aggregate_scale=aggregate_scale,
        erase=erase_options(
            erase_rule, erase_threshold, erase_low, erase_keep_min, erase_renormalize
        ),
        kept=kept,
        wanted=(for_regions, for_words),
    )
    return d_regions, d_words


@cross_attention_backward.register_fake
def _(
    grad: Tensor,
    kept: Tensor,
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase_rule: str,
    erase_threshold: float,
    erase_low: bool,
    erase_keep_min: int,
    erase_renormalize: bool,
    for_regions: bool,
    for_words: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = result_dtype(regions)
    d_regions = regions.new_empty(regions.shape if for_regions else (0,), dtype=dtype)
    return d_regions, words.new_empty(words.shape if for_words else (0,), dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    regions, words, region_lengths, word_lengths, *options, _, backend = inputs
    _, kept = output
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(kept, regions, words, region_lengths, word_lengths)
    ctx.options = options
    ctx.backend = backend


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    grads: list[Tensor | None] = [None] * 15
    wanted = ctx.needs_input_grad[:2]
    if grad is None or not any(wanted):
        return tuple(grads)
    kept, regions, words, *lengths = ctx.saved_tensors
    d_regions, d_words = cross_attention_backward(
        grad.contiguous(), kept, regions, words, *lengths, *ctx.options, *wanted, ctx.backend
    )
    if wanted[0]:
        grads[0] = once("cross_attention", d_regions.to(regions.dtype), grad, regions, words)
    if wanted[1]:
        grads[1] = once("cross_attention", d_words.to(words.dtype), grad, regions, words)
    return tuple(grads)


cross_attention.register_autograd(_backward, setup_context=_setup_context)
