"""The table of equivalences in docs/method.md: other code's formulas by our arguments."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import weighted_info_nce
from tests.conftest import unit

TAU, ROWS, SIZE = 0.2, 5, 9


def problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(6)
    return unit(ROWS, 8).requires_grad_(), unit(ROWS, 8), unit(SIZE, 8)


def assert_same(ours: Tensor, want: Tensor, query: Tensor) -> None:
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(torch.autograd.grad(ours, query), torch.autograd.grad(want, query))


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_hcl_of_robinson_et_al(beta: float, tau_plus: float) -> None:
    """Reweighting exp(beta s / tau) / mean, attached, with the debiased estimator."""
    query, key, bank = problem()
    negative, positive = (query @ bank.T / TAU).exp(), ((query * key).sum(1) / TAU).exp()
    importance = negative**beta
    reweighted = (importance * negative).sum(1) / importance.mean(1)
    total = (reweighted - tau_plus * SIZE * positive) / (1 - tau_plus)
    total = total.clamp(min=SIZE * math.exp(-1 / TAU))
    want = -(positive / (positive + total)).log().mean()
    ours = weighted_info_nce(
        query, key, bank, temperature=TAU, hardness=beta / TAU, detach_weights=False,
        tau_plus=tau_plus,
    )  # fmt: skip
    assert_same(ours, want, query)


def test_hn_nce_of_diht() -> None:
    """n softmax(beta s / tau) over the negatives, alpha 1, attached."""
    query, key, bank = problem()
    logits, right = query @ bank.T / TAU, (query * key).sum(1) / TAU
    weights = SIZE * torch.softmax(0.25 * logits, dim=1)
    want = (torch.log(right.exp() + (weights * logits.exp()).sum(1)) - right).mean()
    ours = weighted_info_nce(
        query, key, bank, temperature=TAU, hardness=0.25 / TAU, detach_weights=False
    )
    assert_same(ours, want, query)


def test_hardness_mode_of_sentence_transformers() -> None:
    """scale s + strength sg(s) for negatives: exponential weights, detached, not normalised."""
    query, key, bank = problem()
    scale, strength = 20.0, 5.0
    cosine = query @ bank.T
    logits = torch.cat(
        [scale * (query * key).sum(1, keepdim=True), scale * cosine + strength * cosine.detach()],
        1,
    )
    want = F.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.long))
    ours = weighted_info_nce(
        query, key, bank, temperature=1 / scale, hardness=strength, normalize_weights=False
    )
    assert_same(ours, want, query)


def test_debiased_loss_of_chuang_et_al() -> None:
    query, key, bank = problem()
    negative, positive = (query @ bank.T / TAU).exp(), ((query * key).sum(1) / TAU).exp()
    total = (negative.sum(1) - 0.1 * SIZE * positive) / 0.9
    total = total.clamp(min=SIZE * math.exp(-1 / TAU))
    want = -(positive / (positive + total)).log().mean()
    assert_same(weighted_info_nce(query, key, bank, temperature=TAU, tau_plus=0.1), want, query)


def test_a_margin_that_drops_likely_false_negatives() -> None:
    """GISTEmbed's absolute margin with the model itself as its guide."""
    query, key, bank = problem()
    cosine, right = query @ bank.T, (query * key).sum(1, keepdim=True)
    logits = (cosine / TAU).masked_fill(cosine > right + 0.1, -torch.inf)
    want = F.cross_entropy(torch.cat([right / TAU, logits], 1), torch.zeros(ROWS, dtype=torch.long))
    assert (cosine > right + 0.1).any()
    ours = weighted_info_nce(query, key, bank, temperature=TAU, margin=0.1)
    assert_same(ours, want, query)


def test_a_relative_margin() -> None:
    """Negatives with s_j > 0.4 s+ are left out."""
    query, key, bank = problem()
    cosine, right = query @ bank.T, (query * key).sum(1, keepdim=True)
    logits = (cosine / TAU).masked_fill(cosine > 0.4 * right, -torch.inf)
    want = F.cross_entropy(torch.cat([right / TAU, logits], 1), torch.zeros(ROWS, dtype=torch.long))
    assert (cosine > 0.4 * right).any()
    ours = weighted_info_nce(query, key, bank, temperature=TAU, limit=0.4 * right[:, 0])
    assert_same(ours, want, query)


def test_focal_rows() -> None:
    """Rows weigh (1 - p)^gamma, p the softmax of the right answer; their weights add up to 1."""
    query, key, bank = problem()
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1) / TAU
    rows = F.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.long), reduction="none")
    weights = (1 - (-rows).exp()).pow(2).detach()
    want = (weights * rows).sum() / weights.sum()
    ours = weighted_info_nce(query, key, bank, temperature=TAU, positive_focus=2.0)
    assert_same(ours, want, query)


@pytest.mark.parametrize("labelled", [False, True])
def test_info_nce_with_a_queue(labelled: bool) -> None:
    """MultipleNegativesRankingLoss by its scale; MoCo's queue keeps rows of the query's id."""
    query, key, bank = problem()
    scale = 20.0
    logits = scale * torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], 1)
    want = F.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.long))
    ids = {"query_ids": torch.zeros(ROWS, dtype=torch.long), "false_negatives": "keep"}
    ids["bank_ids"] = torch.zeros(SIZE, dtype=torch.long)
    ours = weighted_info_nce(
        query, key, bank, temperature=1 / scale, hardness=0.0, **(ids if labelled else {})
    )
    assert_same(ours, want, query)


def test_targets_of_albef_without_its_momentum_share() -> None:
    """Uniform targets over all keys of the query's id, in batch and queue; alpha is 0."""
    query, key, bank = problem()
    ids, stored = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([1, 0, 4, 5, 1, 6, 7, 8, 3])
    logits = query @ torch.cat([key, bank]).T / TAU
    same = ids[:, None] == torch.cat([ids, stored])
    targets = same / same.sum(1, keepdim=True)
    want = -(torch.log_softmax(logits, 1) * targets).sum(1).mean()
    ours = weighted_info_nce(
        query, key, bank, temperature=TAU, query_ids=ids, bank_ids=stored,
        false_negatives="positive", in_batch_negatives=True,
    )  # fmt: skip
    assert_same(ours, want, query)
