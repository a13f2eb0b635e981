"""One block of region-word similarities in plain PyTorch, and its gradient.

For a source set V (R, D) and a query set E (L, D), with S = V E^T and G = V V^T:
query.context = sum_r a_r s_r and |context|^2 = a^T G a, which loses digits where the attended
vectors cancel; or the contexts themselves, which keep them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends.torch.erase import erase as erase_rows
from sede_kernels.backends.torch.erase import erase_backward
from sede_kernels.fragment_types import Attend, LateInteraction

_NORM_EPS = 1e-8
_COSINE_EPS = 1e-8
_LEAK = 0.1
#: |context|^2 as a^T G a counts while what cancelled in it was at most so many times as large.
_CANCELLED = 16.0


@dataclass
class Block:
    """What the backward of one block needs. Shapes: s, a (P, R, Q, L); the others (P, Q, L).

    ``lost``: pairs in which the Gram form loses digits; their similarities may be any.
    """

    s: Tensor
    clipped: Tensor
    norm: Tensor  # (P, R, Q, 1), without the eps
    softmax: Tensor
    a: Tensor
    mask: Tensor | None
    gram_a: Tensor  # empty with contexts
    context: Tensor | None  # (P, Q, L, D)
    size: Tensor  # |context|
    query: Tensor  # (P or 1, Q, L, D)
    query_norm: Tensor  # (P or 1, Q, L)
    sim: Tensor
    query_valid: Tensor  # (P or 1, Q, L)
    lost: Tensor  # (P, Q) bool


class BlockGradient(NamedTuple):
    """Of a block: the sources get dS E + ``source``, the queries dS^T V + ``own`` E + ``pull``."""

    ds: Tensor  # (P, R, Q, L)
    source: Tensor  # (P, R, D)
    own: Tensor  # (P, Q, L)
    pull: Tensor | None  # (P, Q, L, D), with contexts


def valid_sets(sets: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sets with zeroed padding (it may hold anything), and which fragments are valid."""
    if lengths is None:
        return sets, torch.ones(sets.shape[:2], dtype=torch.bool, device=sets.device)
    valid = torch.arange(sets.shape[1], device=sets.device) < lengths.unsqueeze(1)
    return sets.masked_fill(~valid.unsqueeze(2), 0.0), valid


def attend(
    s: Tensor,
    source: Tensor,
    source_valid: Tensor,
    query: Tensor,
    query_valid: Tensor,
    how: Attend,
    *,
    contexts: bool,
) -> tuple[Tensor, Block]:
    """Similarities (P, Q) from S (P, R, Q, L), and the block for the backward.

    Args:
        s: dot products of sources and queries.
        source: (P, R, D), zero beyond the lengths.
        source_valid: (P, R).
        query: (P or 1, Q, L, D), zero beyond the lengths.
        query_valid: (P or 1, Q, L).
        how: the settings.
        contexts: form them, P Q L D elements, instead of the Gram matrices.
    """
    P, R, Q, L = s.shape
    clipped = F.leaky_relu(s, _LEAK).masked_fill(~query_valid.unsqueeze(1), 0.0)
    norm = clipped.square().sum(dim=3, keepdim=True).sqrt()
    logits = clipped * (how.smoothing / (norm + _NORM_EPS))
    logits = logits.masked_fill(~source_valid.view(P, R, 1, 1), -torch.inf)
    some = source_valid.any(dim=1).view(P, 1, 1, 1)
    softmax = logits.masked_fill(~some, 0.0).softmax(dim=1).masked_fill(~some, 0.0)
    a, mask = softmax, None
    if how.erase is not None:
        counts = source_valid.sum(dim=1).view(P, 1, 1).expand(P, Q, L)
        out, kept = erase_rows(softmax.permute(0, 2, 3, 1), counts, how.erase)
        a, mask = out.permute(0, 3, 1, 2), kept.permute(0, 3, 1, 2)
    query_norm = query.norm(dim=3)
    context, gram_a = None, s.new_empty(0)
    flat_a = a.reshape(P, R, Q * L)
    if contexts:
        context = (flat_a.transpose(1, 2) @ source).view(P, Q, L, source.shape[2])
        dot, size = (context * query).sum(dim=3), context.norm(dim=3)
        lost = torch.zeros(P, Q, dtype=torch.bool, device=s.device)
    else:
        gram = source @ source.transpose(1, 2)
        gram_a = (gram @ flat_a).view(P, R, Q, L)
        dot, square = (a * s).sum(dim=1), (a * gram_a).sum(dim=1)
        lost = (_cancels(square, flat_a, gram) & query_valid).any(dim=2)
        size = square.clamp(min=0.0).sqrt()  # rounding can leave a tiny negative square
    sim = dot / (query_norm * size).clamp(min=_COSINE_EPS)
    total = aggregated(sim, query_valid, how)
    present = some.view(P, 1) & query_valid.any(dim=2)
    block = Block(
        s=s,
        clipped=clipped,
        norm=norm,
        softmax=softmax,
        a=a,
        mask=mask,
        gram_a=gram_a,
        context=context,
        size=size,
        query=query,
        query_norm=query_norm,
        sim=sim,
        query_valid=query_valid,
        lost=lost,
    )
    return total.masked_fill(~present, 0.0), block


def _cancels(square: Tensor, a: Tensor, gram: Tensor) -> Tensor:
    """(P, Q, L): queries whose |context|^2 is small beside what a^T G a adds up.

    That is bounded by (sum a |v|)^2, closely where the sources point the same way, and by
    sum_r a_r^2 sum_k |g_rk|, closely where they are nearly orthogonal.
    """
    reach = gram.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1) @ a
    mass = gram.abs().sum(dim=2).unsqueeze(1) @ a.square()
    bound = torch.minimum(reach.square(), mass).view_as(square)
    return square * _CANCELLED < bound


def aggregated(sim: Tensor, valid: Tensor, how: Attend | LateInteraction) -> Tensor:
    """(P, Q): the scores (P, Q, L) of the valid queries, as one."""
    if sim.shape[2] == 0:
        return sim.new_zeros(sim.shape[:2])
    if how.aggregate == "lse":
        logits = (how.aggregate_scale * sim).masked_fill(~valid, -torch.inf)
        return logits.logsumexp(dim=2) / how.aggregate_scale
    if how.aggregate == "max":
        return sim.masked_fill(~valid, -torch.inf).amax(dim=2)
    total = sim.masked_fill(~valid, 0.0).sum(dim=2)
    return total / valid.sum(dim=2).clamp(min=1) if how.aggregate == "mean" else total


def aggregated_backward(
    grad: Tensor, sim: Tensor, valid: Tensor, how: Attend | LateInteraction
) -> Tensor:
    """(P, Q, L): d total / d sim, times the incoming gradient; zero for empty sets."""
    if how.aggregate == "lse":
        logits = (how.aggregate_scale * sim).masked_fill(~valid, -torch.inf)
        share = logits.masked_fill(~valid.any(dim=2, keepdim=True), 0.0).softmax(dim=2)
    elif how.aggregate == "max":
        masked = sim.masked_fill(~valid, -torch.inf)
        best = (masked == masked.amax(dim=2, keepdim=True)) & valid
        share = best.to(sim.dtype) / best.sum(dim=2, keepdim=True).clamp(min=1)
    elif how.aggregate == "mean":
        share = torch.ones_like(sim) / valid.sum(dim=2, keepdim=True).clamp(min=1)
    else:
        share = torch.ones_like(sim)
    return (share * grad.unsqueeze(2)).masked_fill(~valid, 0.0)


def attend_backward(grad: Tensor, block: Block, source: Tensor, how: Attend) -> BlockGradient:
    """What the gradients (P, Q) of the similarities give; none may be of a lost pair."""
    P, R, Q, L = block.s.shape
    g = aggregated_backward(grad, block.sim, block.query_valid, how)
    both = block.query_norm * block.size
    free = both > _COSINE_EPS
    d_dot = g / both.clamp(min=_COSINE_EPS)
    radial = torch.where(free, g * block.sim, 0.0)
    # d sim / d |query| = -sim / |query|; d sim / d |context|^2 = -sim / (2 |context|^2).
    own = -(radial / torch.where(free, block.query_norm.square(), 1.0))
    d_square = -radial / torch.where(free, 2 * block.size.square(), 1.0)
    flat_a = block.a.reshape(P, R, Q * L)
    pull = None
    if block.context is not None:
        pull = d_dot.unsqueeze(3) * block.context
        d_context = d_dot.unsqueeze(3) * block.query + 2 * d_square.unsqueeze(3) * block.context
        d_context = d_context.view(P, Q * L, -1)
        d_a = (source @ d_context.transpose(1, 2)).view(P, R, Q, L)
        ds, d_source = torch.zeros_like(d_a), flat_a @ d_context
    else:
        d_a = d_dot.unsqueeze(1) * block.s + (2 * d_square).unsqueeze(1) * block.gram_a
        ds = d_dot.unsqueeze(1) * block.a
        d_gram = (flat_a * d_square.reshape(P, 1, Q * L)) @ flat_a.transpose(1, 2)
        d_source = 2 * (d_gram @ source)
    if how.erase is not None and block.mask is not None:
        d_a = erase_backward(
            d_a.permute(0, 2, 3, 1),
            block.softmax.permute(0, 2, 3, 1),
            block.mask.permute(0, 2, 3, 1),
            renormalize=how.erase.renormalize,
        ).permute(0, 3, 1, 2)
    d_logits = block.softmax * (d_a - (block.softmax * d_a).sum(dim=1, keepdim=True))
    ds = ds + _through_norm(how.smoothing * d_logits, block)
    return BlockGradient(ds, d_source, own, pull)


def _through_norm(d_unit: Tensor, block: Block) -> Tensor:
    """From the gradient of x / (|x| + eps), x = leaky_relu(S), to what it gives dS.

    The norm takes away all that goes along with it: of a single query nearly everything, which is
    told exactly and not by a difference.
    """
    scale = 1 / (block.norm + _NORM_EPS)
    inner = (d_unit * block.clipped).sum(dim=3, keepdim=True)
    inner = inner * scale.square() / block.norm.masked_fill(block.norm == 0, torch.inf)
    single = (block.query_valid.sum(dim=2) == 1)[:, None, :, None]
    d_clipped = torch.where(
        single, d_unit * scale.square() * _NORM_EPS, d_unit * scale - block.clipped * inner
    )
    d_leaked = torch.where(block.s > 0, d_clipped, _LEAK * d_clipped)
    return d_leaked.masked_fill(~block.query_valid.unsqueeze(1), 0.0)
