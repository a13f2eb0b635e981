"""The retrieval code bases' formulas as their papers state them, for any dtype."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def attended_cosines(query: Tensor, source: Tensor, smoothing: float, focal: str = "") -> Tensor:
    """(N, Q) cosine of each query fragment with its attended context.

    Args:
        query: (N or 1, Q, D).
        source: (N or 1, S, D).
        smoothing: lambda.
        focal: BFAN's rule, or none.
    """
    raw = source @ query.transpose(1, 2)  # [N, S, Q]
    x = F.leaky_relu(raw, 0.1)
    x = x / (x.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
    attention = torch.softmax(smoothing * x.transpose(1, 2), dim=2)  # [N, Q, S]
    if focal:
        g = torch.ones_like(attention) if focal == "equal" else attention.sqrt()
        # sum_j (a_i - a_j) g_j > 0, the paper's double sum
        pairs = (attention.unsqueeze(3) - attention.unsqueeze(2)) * g.unsqueeze(2)
        kept = attention * (pairs.sum(3) > 0)
        attention = kept / kept.sum(2, keepdim=True)
    context = attention @ source
    norms = query.norm(dim=2) * context.norm(dim=2)
    return (query * context).sum(2) / norms.clamp(min=1e-8)


def scan_scores(images: Tensor, captions: Tensor, lengths: list[int], opt: object) -> Tensor:
    """(N, C) scores of SCAN, one caption at a time."""
    columns = []
    for caption, length in zip(captions, lengths, strict=True):
        words = caption[:length].unsqueeze(0)
        pair = (words, images) if opt.cross_attn == "t2i" else (images, words)
        r = attended_cosines(*pair, opt.lambda_softmax)
        if opt.agg_func == "LogSumExp":
            columns.append((opt.lambda_lse * r).exp().sum(1).log() / opt.lambda_lse)
        else:
            columns.append({"Mean": r.mean(1), "Max": r.amax(1), "Sum": r.sum(1)}[opt.agg_func])
    return torch.stack(columns, dim=1)


def bfan_scores(images: Tensor, captions: Tensor, lengths: list[int], opt: object) -> Tensor:
    """(N, C) scores of BFAN, one caption at a time."""
    columns = []
    for caption, length in zip(captions, lengths, strict=True):
        words = caption[:length].unsqueeze(0)
        both = ((words, images), (images, words))
        means = [attended_cosines(*p, opt.lambda_softmax, opt.focal_type).mean(1) for p in both]
        columns.append(means[0] + means[1])
    return torch.stack(columns, dim=1)


def hinge(scores: Tensor, margin: float, max_violation: bool) -> Tensor:
    """Both directions of the hinge, summed, as a loop over the pairs."""
    count = len(scores)
    zero = scores.sum() * 0.0
    total = zero
    for i in range(count):
        to_text = [F.relu(margin + scores[i, j] - scores[i, i]) for j in range(count) if j != i]
        to_image = [F.relu(margin + scores[j, i] - scores[i, i]) for j in range(count) if j != i]
        for costs in (to_text, to_image):
            stacked = torch.stack([zero, *costs])
            total = total + (stacked.max() if max_violation else stacked.sum())
    return total


def recall(sims: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of both directions by sorting every row, best first."""
    images = [
        min(list(np.argsort(-row)).index(j) for j in range(each * i, each * i + each))
        for i, row in enumerate(sims)
    ]
    captions = [list(np.argsort(-column)).index(j // each) for j, column in enumerate(sims.T)]
    return np.array(images), np.array(captions)
