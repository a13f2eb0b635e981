"""The retrieval code bases' formulas as their papers state them, pair by pair, for any dtype."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def attended_cosines(query: Tensor, source: Tensor, smoothing: float, focal: str = "") -> Tensor:
    """(Q,) cosine of each query fragment with its attended context; query (Q, D), source (S, D)."""
    raw = source @ query.T  # [S, Q]
    x = F.leaky_relu(raw, 0.1)
    x = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-8)
    attention = torch.softmax(smoothing * x.T, dim=1)  # [Q, S]
    if focal:
        g = torch.ones_like(attention) if focal == "equal" else attention.sqrt()
        # sum_j (a_i - a_j) g_j > 0, the paper's double sum
        pairs = (attention.unsqueeze(2) - attention.unsqueeze(1)) * g.unsqueeze(1)
        kept = attention * (pairs.sum(2) > 0)
        attention = kept / kept.sum(1, keepdim=True)
    context = attention @ source
    norms = query.norm(dim=1) * context.norm(dim=1)
    return (query * context).sum(1) / norms.clamp(min=1e-8)


def scan_scores(images: Tensor, captions: Tensor, lengths: list[int], opt: object) -> Tensor:
    """(N, C) scores of SCAN, one pair at a time."""
    rows = []
    for image in images:
        row = []
        for caption, length in zip(captions, lengths, strict=True):
            words = caption[:length]
            pair = (words, image) if opt.cross_attn == "t2i" else (image, words)
            r = attended_cosines(*pair, opt.lambda_softmax)
            if opt.agg_func == "LogSumExp":
                row.append((opt.lambda_lse * r).exp().sum().log() / opt.lambda_lse)
            else:
                row.append({"Mean": r.mean(), "Max": r.max(), "Sum": r.sum()}[opt.agg_func])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def bfan_scores(images: Tensor, captions: Tensor, lengths: list[int], opt: object) -> Tensor:
    """(N, C) scores of BFAN, one pair at a time."""
    rows = []
    for image in images:
        row = []
        for caption, length in zip(captions, lengths, strict=True):
            words = caption[:length]
            both = ((words, image), (image, words))
            means = [attended_cosines(*p, opt.lambda_softmax, opt.focal_type).mean() for p in both]
            row.append(means[0] + means[1])
        rows.append(torch.stack(row))
    return torch.stack(rows)


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
