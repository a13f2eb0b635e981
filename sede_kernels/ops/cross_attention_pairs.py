"""Region-word similarity of chosen pairs: a query with its own candidates, not with all sets."""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.cross_attention import erase_options
from sede_kernels.ops.transforms import once
from sede_kernels.types import result_dtype


@torch.library.custom_op("sede::cross_attention_pairs", mutates_args=())
def cross_attention_pairs(
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
    backend: str,
) -> Tensor:
    """Similarities [B, N] of [B, N or 1] sets a side; ``erase_rule`` empty: nothing is erased."""
    run = resolve("cross_attention_pairs", backend, regions, words)
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
    )
    return similarity


@cross_attention_pairs.register_fake
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
    backend: str,
) -> Tensor:
    # One of the two is N, the other N or 1.
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    return regions.new_empty((regions.shape[0], pairs), dtype=result_dtype(regions))


@torch.library.custom_op("sede::cross_attention_pairs_backward", mutates_args=())
def cross_attention_pairs_backward(
    grad: Tensor,
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
    """(d_regions, d_words) in their shapes; one that is not asked for is empty."""
    run = resolve("cross_attention_pairs_backward", backend, regions, words)
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
        wanted=(for_regions, for_words),
    )
    return d_regions, d_words


@cross_attention_pairs_backward.register_fake
def _(
    grad: Tensor,
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
    regions, words, region_lengths, word_lengths, *options, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(regions, words, region_lengths, word_lengths)
    ctx.options = options
    ctx.backend = backend


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    grads: list[Tensor | None] = [None] * 14
    wanted = ctx.needs_input_grad[:2]
    if grad is None or not any(wanted):
        return tuple(grads)
    regions, words, *lengths = ctx.saved_tensors
    d_regions, d_words = cross_attention_pairs_backward(
        grad.contiguous(), regions, words, *lengths, *ctx.options, *wanted, ctx.backend
    )
    if wanted[0]:
        grads[0] = once("cross_attention_pairs", d_regions.to(regions.dtype), grad, regions, words)
    if wanted[1]:
        grads[1] = once("cross_attention_pairs", d_words.to(words.dtype), grad, regions, words)
    return tuple(grads)


cross_attention_pairs.register_autograd(_backward, setup_context=_setup_context)
