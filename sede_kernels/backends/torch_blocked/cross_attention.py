"""Region-word similarity by the Gram form, in blocks of source and query sets.

For a source set V (R, D) and a query set E (L, D), with S = V E^T and G = V V^T:
query.context = sum_r a_r s_r and |context|^2 = a^T G a. i2t swaps the roles of regions and words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends.torch_blocked._blocks import compute_dtype
from sede_kernels.backends.torch_blocked.erase import erase as erase_rows
from sede_kernels.backends.torch_blocked.erase import erase_backward

# Elements of one block of S: about ten tensors of this size are alive in the backward.
_BLOCK_ELEMENTS = 1 << 21
_NORM_EPS = 1e-8
_COSINE_EPS = 1e-8
_LEAK = 0.1

EraseOptions = tuple[str, float, bool, int, bool]


@dataclass(frozen=True)
class Options:
    """The settings of one call."""

    smoothing: float
    aggregate: str
    aggregate_scale: float
    erase: EraseOptions | None


@dataclass
class Block:
    """What the backward of one block needs. Shapes: s, a (P, R, Q, L); the others (P, Q, L)."""

    s: Tensor
    clipped: Tensor
    norm: Tensor  # (P, R, Q, 1), without the eps
    softmax: Tensor
    a: Tensor
    mask: Tensor | None
    gram_a: Tensor
    dot: Tensor
    context: Tensor
    query_norm: Tensor  # (P or 1, Q, L)
    sim: Tensor
    query_valid: Tensor  # (P or 1, Q, L)


def valid_sets(sets: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sets with zeroed padding (it may hold anything), and which fragments are valid."""
    if lengths is None:
        return sets, torch.ones(sets.shape[:2], dtype=torch.bool, device=sets.device)
    valid = torch.arange(sets.shape[1], device=sets.device) < lengths.unsqueeze(1)
    return sets.masked_fill(~valid.unsqueeze(2), 0.0), valid


def _forward(
    source: Tensor, source_valid: Tensor, query: Tensor, query_valid: Tensor, options: Options
) -> tuple[Tensor, Block]:
    """Similarities (P, Q) of P source sets with Q query sets, and the block for the backward."""
    P, R, D = source.shape
    Q, L, _ = query.shape
    s = (source.reshape(P * R, D) @ query.reshape(Q * L, D).T).view(P, R, Q, L)
    norm = query.norm(dim=2).unsqueeze(0)
    return attend(s, source, source_valid, norm, query_valid.unsqueeze(0), options)


def attend(
    s: Tensor,
    source: Tensor,
    source_valid: Tensor,
    query_norm: Tensor,
    query_valid: Tensor,
    options: Options,
) -> tuple[Tensor, Block]:
    """Similarities (P, Q) from S (P, R, Q, L), and the block for the backward.

    Args:
        s: dot products of sources and queries.
        source: (P, R, D), zero beyond the lengths.
        source_valid: (P, R).
        query_norm: (P or 1, Q, L).
        query_valid: (P or 1, Q, L).
        options: the settings.
    """
    P, R, Q, L = s.shape
    clipped = F.leaky_relu(s, _LEAK).masked_fill(~query_valid.unsqueeze(1), 0.0)
    norm = clipped.square().sum(dim=3, keepdim=True).sqrt()
    logits = clipped * (options.smoothing / (norm + _NORM_EPS))
    logits = logits.masked_fill(~source_valid.view(P, R, 1, 1), -torch.inf)
    some = source_valid.any(dim=1).view(P, 1, 1, 1)
    softmax = logits.masked_fill(~some, 0.0).softmax(dim=1).masked_fill(~some, 0.0)
    a, mask = softmax, None
    if options.erase is not None:
        rule, threshold, low, keep_min, renormalize = options.erase
        out, kept = erase_rows(
            softmax.permute(0, 2, 3, 1),
            source_valid.sum(dim=1).view(P, 1, 1).expand(P, Q, L),
            rule=rule,
            threshold=threshold,
            low=low,
            keep_min=keep_min,
            renormalize=renormalize,
        )
        a, mask = out.permute(0, 3, 1, 2), kept.permute(0, 3, 1, 2)
    gram = source @ source.transpose(1, 2)
    gram_a = (gram @ a.reshape(P, R, Q * L)).view(P, R, Q, L)
    dot = (a * s).sum(dim=1)
    # Rounding can leave a tiny negative square.
    context = (a * gram_a).sum(dim=1).clamp(min=0.0).sqrt()
    sim = dot / (query_norm * context).clamp(min=_COSINE_EPS)
    total = _aggregate(sim, query_valid, options)
    present = some.view(P, 1) & query_valid.any(dim=2)
    block = Block(
        s, clipped, norm, softmax, a, mask, gram_a, dot, context, query_norm, sim, query_valid
    )
    return total.masked_fill(~present, 0.0), block


def _aggregate(sim: Tensor, valid: Tensor, options: Options) -> Tensor:
    if sim.shape[2] == 0:
        return sim.new_zeros(sim.shape[:2])
    if options.aggregate == "lse":
        logits = (options.aggregate_scale * sim).masked_fill(~valid, -torch.inf)
        return logits.logsumexp(dim=2) / options.aggregate_scale
    if options.aggregate == "max":
        return sim.masked_fill(~valid, -torch.inf).amax(dim=2)
    total = sim.masked_fill(~valid, 0.0).sum(dim=2)
    return total / valid.sum(dim=2).clamp(min=1) if options.aggregate == "mean" else total


def _aggregate_grad(grad: Tensor, block: Block, options: Options) -> Tensor:
    """(P, Q, L): d total / d sim, times the incoming gradient; zero for empty sets."""
    valid = block.query_valid
    if options.aggregate == "lse":
        logits = (options.aggregate_scale * block.sim).masked_fill(~valid, -torch.inf)
        share = logits.masked_fill(~valid.any(dim=2, keepdim=True), 0.0).softmax(dim=2)
    elif options.aggregate == "max":
        masked = block.sim.masked_fill(~valid, -torch.inf)
        best = (masked == masked.amax(dim=2, keepdim=True)) & valid
        share = best.to(block.sim.dtype) / best.sum(dim=2, keepdim=True).clamp(min=1)
    elif options.aggregate == "mean":
        share = torch.ones_like(block.sim) / valid.sum(dim=2, keepdim=True).clamp(min=1)
    else:
        share = torch.ones_like(block.sim)
    return (share * grad.unsqueeze(2)).masked_fill(~valid, 0.0)


def _backward(
    grad: Tensor, block: Block, source: Tensor, query: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """Gradients of the source block (P, R, D) and the query block (Q, L, D)."""
    P, R, D = source.shape
    Q, L, _ = query.shape
    ds, d_gram, d_query = attend_backward(grad, block, options)
    flat = ds.reshape(P * R, Q * L)
    flat_query = query.reshape(Q * L, D)
    d_source = (flat @ flat_query).view(P, R, D) + 2 * (d_gram @ source)
    d_queries = (flat.T @ source.reshape(P * R, D)).view(Q, L, D)
    return d_source, d_queries + d_query.sum(dim=0).unsqueeze(2) * query


def attend_backward(grad: Tensor, block: Block, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """(dS (P, R, Q, L), half of dG (P, R, R), factor of each query in its gradient (P, Q, L))."""
    P, R, Q, L = block.s.shape
    g = _aggregate_grad(grad, block, options)
    size = block.query_norm * block.context
    free = size > _COSINE_EPS
    d_dot = g / size.clamp(min=_COSINE_EPS)
    radial = torch.where(free, g * block.sim, 0.0)
    # d sim / d |query| = -sim / |query|; d sim / d |context|^2 = -sim / (2 |context|^2).
    d_query = -(radial / torch.where(free, block.query_norm.square(), 1.0))
    d_square = -radial / torch.where(free, 2 * block.context.square(), 1.0)
    d_a = d_dot.unsqueeze(1) * block.s + (2 * d_square).unsqueeze(1) * block.gram_a
    ds = d_dot.unsqueeze(1) * block.a
    flat_a = block.a.reshape(P, R, Q * L)
    d_gram = (flat_a * d_square.reshape(P, 1, Q * L)) @ flat_a.transpose(1, 2)
    if options.erase is not None and block.mask is not None:
        d_a = erase_backward(
            d_a.permute(0, 2, 3, 1),
            block.softmax.permute(0, 2, 3, 1),
            block.mask.permute(0, 2, 3, 1),
            renormalize=options.erase[4],
        ).permute(0, 3, 1, 2)
    d_logits = block.softmax * (d_a - (block.softmax * d_a).sum(dim=1, keepdim=True))
    d_unit = options.smoothing * d_logits
    scale = 1 / (block.norm + _NORM_EPS)
    inner = (d_unit * block.clipped).sum(dim=3, keepdim=True)
    inner = inner * scale.square() / block.norm.masked_fill(block.norm == 0, torch.inf)
    d_clipped = d_unit * scale - block.clipped * inner
    d_leaked = torch.where(block.s > 0, d_clipped, _LEAK * d_clipped)
    ds = ds + d_leaked.masked_fill(~block.query_valid.unsqueeze(1), 0.0)
    return ds, d_gram, d_query


def _tiles(P: int, Q: int, area: int) -> Iterator[tuple[slice, slice]]:
    pairs = max(1, _BLOCK_ELEMENTS // max(area, 1))
    step_p = min(max(P, 1), max(1, int(pairs**0.5)))
    step_q = max(1, pairs // step_p)
    for p in range(0, P, step_p):
        for q in range(0, Q, step_q):
            yield slice(p, p + step_p), slice(q, q + step_q)


def cross_attention_kept(regions: Tensor, words: Tensor) -> int:
    """Elements of S that the forward keeps: none, the backward computes S again."""
    return 0


def cross_attention(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: EraseOptions | None,
    kept: Tensor,
) -> Tensor:
    """See ``sede_kernels.ops.cross_attention``. S lives in memory one block at a time."""
    options = Options(smoothing, aggregate, aggregate_scale, erase)
    dtype = compute_dtype(regions, words)
    with torch.autocast(regions.device.type, enabled=False):
        v, v_valid = valid_sets(regions.to(dtype), region_lengths)
        e, e_valid = valid_sets(words.to(dtype), word_lengths)
        swap = direction == "i2t"
        source, query = (e, v) if swap else (v, e)
        source_valid, query_valid = (e_valid, v_valid) if swap else (v_valid, e_valid)
        out = v.new_zeros((source.shape[0], query.shape[0]))
        if source.shape[1] and query.shape[1]:
            area = source.shape[1] * query.shape[1]
            for p, q in _tiles(source.shape[0], query.shape[0], area):
                out[p, q], _ = _forward(
                    source[p], source_valid[p], query[q], query_valid[q], options
                )
        return out.T.contiguous() if swap else out


def cross_attention_backward(
    grad: Tensor,
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: EraseOptions | None,
    kept: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.cross_attention``."""
    options = Options(smoothing, aggregate, aggregate_scale, erase)
    dtype = compute_dtype(regions, words)
    with torch.autocast(regions.device.type, enabled=False):
        v, v_valid = valid_sets(regions.to(dtype), region_lengths)
        e, e_valid = valid_sets(words.to(dtype), word_lengths)
        swap = direction == "i2t"
        source, query = (e, v) if swap else (v, e)
        source_valid, query_valid = (e_valid, v_valid) if swap else (v_valid, e_valid)
        g = (grad.T if swap else grad).to(dtype)
        d_source, d_query = torch.zeros_like(source), torch.zeros_like(query)
        if source.shape[1] and query.shape[1]:
            area = source.shape[1] * query.shape[1]
            for p, q in _tiles(source.shape[0], query.shape[0], area):
                _, block = _forward(source[p], source_valid[p], query[q], query_valid[q], options)
                present = source_valid[p].any(dim=1).unsqueeze(1) & query_valid[q].any(dim=1)
                part = g[p, q].masked_fill(~present, 0.0)
                d_p, d_q = _backward(part, block, source[p], query[q], options)
                d_source[p] += d_p
                d_query[q] += d_q
        grads = (d_query, d_source) if swap else (d_source, d_query)
        return grads[0] if wanted[0] else v.new_empty(0), grads[1] if wanted[1] else v.new_empty(0)
