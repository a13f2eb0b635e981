"""Region-word similarity by the Gram form; see ``docs/backends.md`` for tiles and buckets.

Pairs in which that form loses digits are marked on the device and computed again with contexts.
Roles instead of modalities: P source sets V (R, D) are attended by Q query sets E (L, D). t2i:
sources are regions; i2t: sources are words.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends import _chosen_pairs
from sede_kernels.backends.triton import interpreting, launch
from sede_kernels.backends.triton._host import on_device, padded
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.attention_sets import (
    SMALLEST_QUERY,
    SMALLEST_SOURCE,
    Bucket,
    Side,
    bucket_pairs,
    packing,
    side_of,
)
from sede_kernels.backends.triton.erase import double_halves
from sede_kernels.backends.triton.gram import WIDTH, gram_gradient, gram_of
from sede_kernels.backends.triton.kernels.cross_attention import (
    _cross_attention_bwd_kernel,
    _cross_attention_fwd_kernel,
)
from sede_kernels.backends.triton.pair_launches import (
    Pairs,
    PairSide,
    add_gradients,
    write_similarities,
)
from sede_kernels.fragment_types import Attend, Attended, Erase, Fragments, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients

Numbers = tuple[float, float, int, int, int]

#: Source sets that run before the next tile of queries.
GROUP = 8
#: Tiles whose three tf32 products would spill: (kernel, columns) without matrix units on sm_8x.
_WITHOUT_MATRIX_UNITS = ("cross_attention_backward", 64)
#: Elements of dS in memory at once (or one source set's), and as many of a: 2 x 32 MB in a half.
_CHUNK_ELEMENTS = 1 << 24
#: Several sets to a tile, and few programs: each costs the interpreter 0.1 s or more.
_INTERPRETED = launch.Config(rows=128, cols=32, warps=4, stages=1)


def _constants(
    kernel: str,
    problem: Problem,
    query: Side,
    source: Side,
    query_bucket: Bucket,
    source_bucket: Bucket,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Tile and options of one launch."""
    kind, cols = problem.kind, source_bucket.block
    config = _INTERPRETED if interpreting() else problem.config(kernel, f"{kind}/{cols}")
    sets, stride = packing(query.sets.shape[1], query_bucket.block, config.rows, cols, query.vary)
    return {
        "QUERY_VARY": query.vary,
        "SOURCE_VARY": source.vary,
        **options,
        "PRECISION": tile_precision(kernel, kind, cols, problem.architecture),
        "SETS": sets,
        "STRIDE": stride,
        "GROUP": GROUP,
        "BLOCK_G": padded(sets, 1),
        "BLOCK_M": config.rows,
        "BLOCK_N": cols,
        "BLOCK_D": config.cols,
        **config.options,
    }


def tile_precision(kernel: str, kind: str, cols: int, architecture: str) -> str:
    """``product_precision`` of a tile; full fp32 where three tf32 products would spill."""
    plain = architecture.startswith("sm_8") and (kernel, cols) == _WITHOUT_MATRIX_UNITS
    return "ieee" if plain and kind == "ieee" else launch.product_precision(kind)


def _norms(sets: Tensor) -> Tensor:
    """(N, F) fp32 lengths of the vectors."""
    norms: Tensor = torch.linalg.vector_norm(sets, dim=2, dtype=torch.float32)
    return norms


def how_constants(how: Attend) -> dict[str, Any]:
    """Constants of the kernels: the aggregate and the rule, "" for none."""
    erase = how.erase or Erase("")
    return {
        "AGGREGATE": how.aggregate,
        "RULE": erase.rule,
        "LOW": erase.side == "low",
        "RENORMALIZE": erase.renormalize,
    }


def how_numbers(how: Attend, sources: int) -> Numbers:
    """Arguments of the kernels: smoothing, aggregate's scale, the threshold's halves, keep_min."""
    erase = how.erase or Erase("")
    halves = double_halves(erase.threshold)
    return (how.smoothing, how.aggregate_scale, *halves, min(erase.keep_min, sources))


def _marked(regions: Tensor, words: Tensor) -> bool:
    """Whether the Gram form serves, so that pairs may lose digits and get marks."""
    some = regions.shape[1] > 0 and words.shape[1] > 0
    return some and not _chosen_pairs.all_chosen(regions)


def cross_attention_kept(regions: Tensor, words: Tensor) -> int:
    """What the forward keeps: a number a pair, not 0 where the contexts are to be formed."""
    return regions.shape[0] * words.shape[0] if _marked(regions, words) else 0


def cross_attention(sides: Fragments, how: Attend, keep: bool) -> Attended:
    """See ``sede_kernels.ops.cross_attention``. Memory: G, one norm a query, one byte a pair.

    With ``keep`` also a number a pair, as large as the result.
    """
    regions, words, region_lengths, word_lengths = sides
    out = regions.new_zeros((regions.shape[0], words.shape[0]), dtype=torch.float32)
    kept = out.new_empty(cross_attention_kept(regions, words) if keep else 0)
    found = Attended(out, kept)
    if regions.shape[1] == 0 or words.shape[1] == 0 or out.numel() == 0:
        return found
    roles = (words, word_lengths), (regions, region_lengths)
    by_source = out
    if how.direction == "i2t":
        roles, by_source = roles[::-1], out.T
    with on_device(regions):
        problem = Problem.of_sets(regions)
        query = side_of(roles[0][0].contiguous(), roles[0][1], SMALLEST_QUERY)
        source = side_of(roles[1][0].contiguous(), roles[1][1], SMALLEST_SOURCE)
        numbers, options = how_numbers(how, source.sets.shape[1]), how_constants(how)
        lost = None
        if _marked(regions, words):
            lost = _by_gram(problem, query, source, by_source, numbers, options)
            kept.copy_(lost.flatten() if keep else kept)
        pairs = _pairs(problem, query, source, source.sets, lost, numbers, options)
        write_similarities(pairs, by_source)
    return found


def _by_gram(
    problem: Problem,
    query: Side,
    source: Side,
    out: Tensor,
    numbers: Numbers,
    options: dict[str, Any],
) -> Tensor:
    """Write the similarities to ``out`` (P, Q); (P, Q) int8: 1 where they lost digits."""
    (Q, L, D), (P, R, _) = query.sets.shape, source.sets.shape
    lost = out.new_empty((P, Q), dtype=torch.int8)
    norms, (gram, sizes) = _norms(query.sets), gram_of(problem, source)
    for buckets in bucket_pairs(query, source):
        constants = _constants("cross_attention", problem, query, source, *buckets, options)
        _cross_attention_fwd_kernel[(P * triton.cdiv(Q, constants["SETS"]),)](
            query.sets,
            source.sets,
            norms,
            gram,
            sizes,
            query.lengths,
            source.lengths,
            query.order,
            source.order,
            query.bounds,
            source.bounds,
            out,
            lost,
            Q,
            L,
            P,
            R,
            gram.shape[1] // WIDTH,
            D,
            *out.stride(),
            *(bucket.index for bucket in buckets),
            *numbers,
            **constants,
        )
    return lost


def _pairs(
    problem: Problem,
    query: Side,
    source: Side,
    sources: Tensor,
    lost: Tensor | None,
    numbers: Numbers,
    options: dict[str, Any],
) -> Pairs:
    """All pairs as chosen ones, or those that are marked; ``sources`` as given, without padding."""
    return Pairs(
        problem,
        PairSide(query.sets, query.lengths, row=0, step=1),
        PairSide(sources, source.lengths, row=1, step=0),
        rows=sources.shape[0],
        pairs=query.sets.shape[0],
        lost=lost,
        numbers=numbers,
        options=options,
    )


def _clean(sets: Tensor, lengths: Tensor | None, width: int = 1) -> Tensor:
    """Contiguous, with zeroed padding: products over all fragments may not meet NaN there.

    The number of fragments is rounded up to a multiple of ``width``.
    """
    if lengths is not None:
        beyond = torch.arange(sets.shape[1], device=sets.device) >= lengths.unsqueeze(1)
        sets = sets.masked_fill(beyond.unsqueeze(2), 0.0)
    return F.pad(sets, (0, 0, 0, -sets.shape[1] % width)).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in fp32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _range(grad: Tensor, dtype: torch.dtype) -> Tensor | None:
    """fp16 holds dS relative to the largest gradient: it would lose small ones."""
    if dtype != torch.float16:
        return None
    return grad.abs().nan_to_num(0.0, 0.0, 0.0).amax().clamp(min=torch.finfo(torch.float32).tiny)


def cross_attention_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention``. S is computed again; dS exists a chunk at a time.

    Each program writes its own part of every sum and the parts are added in a fixed order.
    """
    swap = how.direction == "i2t"
    roles = (sides.words, sides.word_lengths), (sides.regions, sides.region_lengths)
    g = grad.to(torch.float32)
    if swap:
        roles, g = roles[::-1], g.T
    (queries, query_lengths), (sources, source_lengths) = roles
    for_sources, for_queries = wanted[::-1] if swap else wanted
    empty = torch.empty(0, dtype=torch.float32, device=grad.device)
    d_query = empty.new_zeros(queries.shape) if for_queries else empty
    d_source = empty.new_zeros(sources.shape) if for_sources else empty
    if queries.numel() and sources.numel():
        with on_device(g), full_precision(g.device.type):
            largest = _range(g, queries.dtype)
            g = g if largest is None else g / largest
            problem = Problem.of_sets(queries)
            query = side_of(_clean(queries, query_lengths), query_lengths, SMALLEST_QUERY)
            clean = _clean(sources, source_lengths, WIDTH)
            P, R, _ = sources.shape
            numbers, options = how_numbers(how, R), how_constants(how)
            marks = kept.to(torch.int8).view(P, -1) if kept.numel() else None
            step = max(1, _CHUNK_ELEMENTS // (query.sets[..., 0].numel() * clean.shape[1]))
            for first in range(0, P, step):
                part = slice(first, first + step)
                lengths = None if source_lengths is None else source_lengths[part]
                source, lost = side_of(clean[part], lengths, SMALLEST_SOURCE), None
                if marks is not None:
                    lost = marks[part]
                    d_part = _chunk_backward(
                        problem, g[part], lost, query, source, R, numbers, options, d_query,
                        for_sources,
                    )  # fmt: skip
                    if d_part is not None:
                        d_source[part] = d_part[:, :R]
                given = sources[part].contiguous()
                pairs = _pairs(problem, query, source, given, lost, numbers, options)
                add_gradients(pairs, g[part], d_query, d_source[part])
            if largest is not None:
                d_query *= largest
                d_source *= largest
    return SideGradients(*((d_query, d_source) if swap else (d_source, d_query)))


def _chunk_backward(
    problem: Problem,
    grad: Tensor,
    lost: Tensor,
    query: Side,
    source: Side,
    sources: int,
    numbers: Numbers,
    options: dict[str, Any],
    d_query: Tensor,
    for_sources: bool,
) -> Tensor | None:
    """The gradient of some padded source sets, if wanted, without that of the pairs ``lost``.

    Adds that of the queries to ``d_query`` if not empty.
    """
    (Q, L, D), (P, W, _) = query.sets.shape, source.sets.shape
    gram, _ = gram_of(problem, source)
    d_scores, attention = query.sets.new_zeros((2, Q * L, P * W))
    d_norm, d_square = gram.new_zeros((2, P, Q * L))
    norms = _norms(query.sets)
    for buckets in bucket_pairs(query, source):
        constants = _constants(
            "cross_attention_backward", problem, query, source, *buckets, options
        )
        _cross_attention_bwd_kernel[(P * triton.cdiv(Q, constants["SETS"]),)](
            grad,
            query.sets,
            source.sets,
            norms,
            gram,
            query.lengths,
            source.lengths,
            query.order,
            source.order,
            query.bounds,
            source.bounds,
            d_scores,
            attention,
            d_norm,
            d_square,
            lost,
            Q,
            L,
            P,
            sources,
            W // WIDTH,
            D,
            *grad.stride(),
            *(bucket.index for bucket in buckets),
            *numbers,
            **constants,
        )
    flat_query, flat_source = query.sets.view(Q * L, D), source.sets.view(P * W, D)
    if d_query.numel():
        rows = d_query.view(Q * L, D)
        rows += _product(d_scores, flat_source)
        rows += d_norm.sum(dim=0).unsqueeze(1) * flat_query
    if not for_sources:
        return None
    d_gram = gram_gradient(problem, gram, attention, d_square)
    d_source: Tensor = _product(d_scores.T, flat_query).view(P, W, D)
    return d_source + 2 * (d_gram @ source.sets.float())
