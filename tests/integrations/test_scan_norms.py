"""SCAN's other raw_feature_norm: the published formula, one caption at a time."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.functional import attention_erase, cross_attention_similarity
from sede_kernels.integrations import _norms, scan
from tests.conftest import unit

NORMS = ["softmax", "l2norm", "l1norm", "clipped_l1norm", "clipped", "no_norm"]
LENGTHS = [5, 2, 1, 4]


def options(**changes: object) -> SimpleNamespace:
    values = {
        "cross_attn": "t2i",
        "raw_feature_norm": "clipped_l2norm",
        "agg_func": "LogSumExp",
        "lambda_softmax": 4.0,
        "lambda_lse": 5.0,
        "embed_size": 8,
    }
    return SimpleNamespace(**{**values, **changes})


def normed(raw: Tensor, norm: str) -> Tensor:
    """Over the last axis, the queries; the paper's six variants beside the clipped L2 norm."""
    clipped = torch.where(raw > 0, raw, 0.1 * raw)
    if norm == "softmax":
        return raw.softmax(dim=2)
    if norm == "l2norm":
        return raw / (raw.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
    if norm in ("l1norm", "clipped_l1norm"):
        chosen = raw if norm == "l1norm" else clipped
        return chosen / (chosen.abs().sum(2, keepdim=True) + 1e-8)
    return clipped if norm == "clipped" else raw


def expected(images: Tensor, captions: Tensor, opt: SimpleNamespace, rule: str = "") -> Tensor:
    columns = []
    for caption, length in zip(captions, LENGTHS, strict=False):
        words = caption[:length].expand(len(images), -1, -1)
        query, source = (words, images) if opt.cross_attn == "t2i" else (images, words)
        weights = normed(source @ query.transpose(1, 2), opt.raw_feature_norm).transpose(1, 2)
        attention = (opt.lambda_softmax * weights).softmax(dim=2)
        if rule:
            attention = attention_erase(attention, rule=rule, backend="reference")[0]
        cosine = F.cosine_similarity(query, attention @ source, dim=2, eps=1e-8)
        if opt.agg_func == "LogSumExp":
            columns.append((opt.lambda_lse * cosine).exp().sum(1).log() / opt.lambda_lse)
        else:
            kind = {"Mean": cosine.mean(1), "Max": cosine.amax(1), "Sum": cosine.sum(1)}
            columns.append(kind[opt.agg_func])
    return torch.stack(columns, dim=1)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    images = unit(3, 6, 8).requires_grad_()
    captions = unit(4, 5, 8)
    captions[1, 2:] = torch.nan  # padded words may hold anything
    return images, captions.requires_grad_()


@pytest.mark.parametrize("rule", ["", "mean"], ids=["plain", "erased"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_is_the_host_s(norm: str, direction: str, rule: str) -> None:
    images, captions = batch()
    opt = options(raw_feature_norm=norm, cross_attn=direction)
    score = scan.xattn_score_t2i if direction == "t2i" else scan.xattn_score_i2t
    got = score(images, captions, LENGTHS, opt, erase=rule or None)
    want = expected(images, captions, opt, rule)
    torch.testing.assert_close(got, want)
    weight = torch.randn(3, 4, dtype=torch.float64)
    found = torch.autograd.grad((got * weight).sum(), (images, captions))
    right = torch.autograd.grad((want * weight).sum(), (images, captions))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("aggregate", ["Mean", "Max", "Sum"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_every_aggregate_and_blocks_of_captions(
    direction: str, aggregate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_norms, "ELEMENTS", 200)  # two captions at a time
    images, captions = batch()
    opt = options(raw_feature_norm="l1norm", cross_attn=direction, agg_func=aggregate)
    score = scan.xattn_score_t2i if direction == "t2i" else scan.xattn_score_i2t
    torch.testing.assert_close(
        score(images, captions, LENGTHS, opt), expected(images, captions, opt)
    )


def test_the_criterion_scores_its_banks_under_another_norm() -> None:
    opt = options(raw_feature_norm="softmax")
    criterion = scan.ContrastiveLoss(
        opt, 0.2, bank_size=8, regions=6, max_words=5, bank_dtype=torch.float64
    )
    sets = []
    for seed in range(2):
        torch.manual_seed(seed)
        sets.append((unit(3, 6, 8).requires_grad_(), unit(3, 5, 8)))
        loss = criterion(*sets[-1], LENGTHS[:3])
    (old_images, old_words), (images, words) = sets
    inside = expected(images, words, opt)
    hidden = torch.eye(3, dtype=torch.bool)
    want = torch.zeros((), dtype=torch.float64)
    for scores, more in (
        (inside, expected(images, old_words, opt)),
        (inside.T, expected(old_images, words, opt).T),
    ):
        violated = (0.2 + torch.cat([scores, more], 1) - scores.diagonal().unsqueeze(1)).relu()
        violated = violated.masked_fill(F.pad(hidden, (0, 3)), 0.0)
        want = want + violated.sum()
    torch.testing.assert_close(loss, want)
    assert len(criterion.image_bank) == len(criterion.text_bank) == 6


def test_the_plain_path_agrees_with_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fused norm as a seventh one, every other step is held to the kernels' values."""
    monkeypatch.setitem(_norms.NORMS, "fused", lambda s, queries: _norms._l2(_norms._leaky(s)))
    images, captions = batch()
    lengths = torch.tensor(LENGTHS)
    for direction in ("t2i", "i2t"):
        settings = {
            "direction": direction,
            "smoothing": 9.0,
            "aggregate": "lse",
            "aggregate_scale": 6.0,
            "erase": None,
        }
        plain = _norms.plain_similarity(images, captions, lengths, norm="fused", **settings)
        clean = captions.nan_to_num(0.0)
        fused = cross_attention_similarity(images, clean, word_lengths=lengths, **settings)
        torch.testing.assert_close(plain, fused)
