"""Region-word similarity of all image-caption pairs (SCAN, BFAN) without the context vectors."""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.bank_lse import result_dtype

EraseOptions = tuple[str, float, bool, int, bool]


def _erase_options(
    rule: str, threshold: float, low: bool, keep_min: int, renormalize: bool
) -> EraseOptions | None:
    return (rule, threshold, low, keep_min, renormalize) if rule else None


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
    backend: str,
) -> Tensor:
    """Similarities [B, C]; ``erase_rule`` is empty where nothing is erased."""
    run = resolve("cross_attention", backend, regions, words)
    similarity: Tensor = run(
        regions,
        words,
        region_lengths,
        word_lengths,
        direction=direction,
        smoothing=smoothing,
        aggregate=aggregate,
        aggregate_scale=aggregate_scale,
        erase=_erase_options(
            erase_rule, erase_threshold, erase_low, erase_keep_min, erase_renormalize
        ),
    )
    return similarity


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
    backend: str,
) -> Tensor:
    return regions.new_empty((regions.shape[0], words.shape[0]), dtype=result_dtype(regions))


@torch.library.custom_op("sede::cross_attention_backward", mutates_args=())
def cross_attention_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(d_regions [B, R, D], d_words [C, L, D]), similarities recomputed block by block."""
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
        erase=_erase_options(
            erase_rule, erase_threshold, erase_low, erase_keep_min, erase_renormalize
        ),
    )
    return d_regions, d_words


@cross_attention_backward.register_fake
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = result_dtype(regions)
    return regions.new_empty(regions.shape, dtype=dtype), words.new_empty(words.shape, dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    regions, words, region_lengths, word_lengths, *options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(regions, words, region_lengths, word_lengths)
    ctx.options = options


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    grads = [None] * 14
    if grad is None:
        return tuple(grads)
    regions, words, region_lengths, word_lengths = ctx.saved_tensors
    d_regions, d_words = cross_attention_backward(
        grad.contiguous(), regions, words, region_lengths, word_lengths, *ctx.options
    )
    if ctx.needs_input_grad[0]:
        grads[0] = d_regions.to(regions.dtype)
    if ctx.needs_input_grad[1]:
        grads[1] = d_words.to(words.dtype)
    return tuple(grads)


cross_attention.register_autograd(_backward, setup_context=_setup_context)
