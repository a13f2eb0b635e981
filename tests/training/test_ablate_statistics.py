"""Intervals against published values of Student's t, and the facts behind a table."""

import math

import numpy as np
import pytest
import torch

from sede_kernels import MemoryBank
from sede_kernels.study.paired import estimate, t_quantile, t_two_sided
from sede_kernels.training.analysis import (
    attention_facts,
    encode_pairs,
    erase_rows,
    masked_share,
    negative_facts,
    pair_attention,
)
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.run import build_model


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216),
     (10, 2.22814), (30, 2.04227), (120, 1.97993)],
)  # fmt: skip
def test_t_quantile(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, rel=3e-6)


def test_t_is_the_integral_of_its_density():
    x = torch.linspace(0, 1.7, 100_001, dtype=torch.float64)
    for freedom in (1, 2, 3, 7, 8):
        log_norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        norm = math.exp(log_norm) / math.sqrt(freedom * math.pi)
        density = norm * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        area = 2 * float(torch.trapezoid(density, x))
        assert t_two_sided(1.7, freedom) == pytest.approx(area, abs=1e-9)


def test_paired_interval():
    # Student's own sleep data (1908): extra hours, drug 2 minus drug 1, ten patients.
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = estimate([b - a for a, b in zip(one, two, strict=True)])
    assert found.mean == pytest.approx(1.58)
    assert found.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert (found.verdict, found.count) == ("ahead", 10)
    assert estimate([-b for b in (1.0, 1.1, 1.2)]).verdict == "behind"
    assert estimate([1.0, -1.0]).verdict == "open"
    alone = estimate([4.0])
    assert (alone.mean, alone.verdict) == (4.0, "open")
    assert math.isnan(alone.half)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
    assert estimate(np.full(4, 2.5).tolist()).half == 0


@pytest.fixture
def part(icons):
    from sede_kernels.training.run import load_corpus

    return load_corpus("icons_100", ("train",))


def build(name: str, corpus, **settings):
    torch.manual_seed(3)
    config = TrainConfig(model=name, dim=16, word_dim=8, dropout=0.0, **settings)
    return build_model(config, 320, len(corpus.vocabulary)).eval()


def test_pair_attention_is_the_one_that_scores(part):
    """With it, the context written out gives the library's similarity of the right pairs."""
    model = build("scan", part, erase="low")
    captions = np.arange(9)
    images, text = encode_pairs(model, part.parts["train"], part.words["train"], captions)
    attention, real = pair_attention(model, images, text)
    context = erase_rows(attention, model.erasing) @ images.fragments
    cosine = torch.nn.functional.cosine_similarity(text.fragments, context, dim=2)
    mean = (cosine * real).sum(1) / real.sum(1)
    torch.testing.assert_close(mean, model.score(images, text).diagonal(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["vse", "scan", "bfan", "vsrn"])
def test_attention_facts_of_every_model(name, part):
    train, words = part.parts["train"], part.words["train"]
    facts = attention_facts(build(name, part, erase="low"), train, words)
    assert 0 < facts["entropy_after"] < facts["entropy"] <= math.log(36) + 1e-5
    assert 1 / 36 <= facts["regions_kept"] < 1
    # What is kept is what is attended most: it holds more than its share.
    assert facts["attention_kept"] > facts["regions_kept"]
    high = attention_facts(build(name, part, erase="high"), train, words)
    assert high["attention_kept"] + facts["attention_kept"] == pytest.approx(1, abs=0.02)
    base = attention_facts(build(name, part), train, words)
    assert set(base) == {"entropy"}


def test_scan_from_images_to_text_has_no_attention_over_regions(part):
    model = build("scan", part, direction="i2t", erase="low")
    assert attention_facts(model, part.parts["train"], part.words["train"]) is None


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_hardest_negatives_against_a_loop(name, part):
    train, words = part.parts["train"], part.words["train"]
    train.image_ids[train.image_of[4]] = train.image_ids[train.image_of[60]]
    model = build(name, part)
    found = negative_facts(model, train, words, batch=7, many=20)
    order = np.random.default_rng(0).permutation(len(train.captions))
    count = len(order) // 7 * 7
    images, text = encode_pairs(model, train, words, order)
    with torch.no_grad():
        scores = model.score(images, text)
    ids = train.image_ids[train.image_of[order]].tolist()
    hardest = []
    for i in range(count):
        group = range(i // 7 * 7, i // 7 * 7 + 7)
        hardest.append(max(float(scores[j, i]) for j in group if ids[j] != ids[i]))
    assert found["hardest_in_batch"] == pytest.approx(np.mean(hardest), abs=1e-5)
    assert found["positive"] == pytest.approx(float(scores.diagonal()[:count].mean()), abs=1e-5)
    assert found["hardest_of_many"] >= found["hardest_in_batch"]
    assert found["many_beat"] >= found["batch_beats"]


def test_masked_share_counts_what_a_real_bank_holds(part):
    train = part.parts["train"]
    config = TrainConfig(model="vse", batch_size=8, bank=33, seed=5)
    found = masked_share(config, train, 3)
    ids = train.image_ids[train.image_of]
    bank, masked, touched, queries = MemoryBank(33, 4), 0, 0, 0
    for epoch in range(3):
        order = np.random.default_rng([5, epoch]).permutation(len(ids))
        for start in range(0, len(order), 8):
            rows = ids[order[start : start + 8]]
            same = (rows[:, None] == bank.ids).sum(1)
            masked, touched = masked + int(same.sum()), touched + int((same > 0).sum())
            queries += len(rows)
            bank.enqueue(torch.zeros(len(rows), 4), rows)
    assert masked > 0
    assert found == {"entries": masked / queries, "queries": touched / queries}
