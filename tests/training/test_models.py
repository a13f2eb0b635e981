"""The models against their published formulas, written out pair by pair."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sede_kernels.training.config import TrainConfig
from sede_kernels.training.data.precomp import load_part
from sede_kernels.training.files import UserError
from sede_kernels.training.loop import Trainer
from sede_kernels.training.models import MODELS, Encoded
from sede_kernels.training.models.vsrn import Relations
from sede_kernels.training.run import build_model
from sede_kernels.training.similarities import score_part

LENGTHS = torch.tensor([3, 2, 5])  # one word alone has uniform attention: ties, no formula


def built(name, **settings):
    torch.manual_seed(0)
    return build_model(TrainConfig(model=name, dim=8, word_dim=6, **settings), 12, 30).eval()


def encoded(model):
    torch.manual_seed(1)
    images = model.image_encoder(torch.randn(4, 7, 12))
    captions = model.text_encoder(torch.randint(1, 30, (3, 5)), LENGTHS)
    return images, captions


def real(side, row):
    """The fragments of one image or caption, float64, without padding."""
    length = side.fragments.shape[1] if side.lengths is None else int(side.lengths[row])
    return side.fragments[row, :length].double()


def attended(query, source, smoothing, focus):
    """Mean cosine of each query with its focused context, as SCAN and BFAN publish it."""
    similarity = F.leaky_relu(source @ query.t(), 0.1)  # [sources, queries]
    similarity = similarity / (similarity.norm(dim=1, keepdim=True) + 1e-8)
    attention = (smoothing * similarity).softmax(0).t()  # [queries, sources]
    if focus == "equal":
        funnel = len(source) * attention - attention.sum(1, keepdim=True)
        attention = attention * (funnel > 0)
    if focus == "prob":
        root = attention.sqrt()
        funnel = (root[:, None, :] * (attention[:, :, None] - attention[:, None, :])).sum(2)
        attention = attention * (funnel > 0)
    if focus:
        attention = torch.where(attention.sum(1, keepdim=True) > 0, attention, 1.0)
        attention = attention / attention.sum(1, keepdim=True)
    return F.cosine_similarity(query, attention @ source, dim=1).mean()


@pytest.mark.parametrize(
    ("name", "settings", "smoothing", "focus"),
    [
        ("scan", {}, (9, None), None),
        ("scan", {"direction": "i2t"}, (None, 4), None),
        ("scan", {"direction": "both", "smoothing": 6.0}, (6, 6), None),
        ("bfan", {}, (20, 20), "equal"),
        ("bfan", {"focal": "prob"}, (20, 20), "prob"),
    ],
    ids=["scan-t2i", "scan-i2t", "scan-both", "bfan-equal", "bfan-prob"],
)
def test_cross_attention_scores_equal_the_published_formula(name, settings, smoothing, focus):
    model = built(name, **settings)
    images, captions = encoded(model)
    found = model.score(images, captions)
    for i, c in itertools.product(range(4), range(3)):
        regions, words = real(images, i), real(captions, c)
        ways = []
        if smoothing[0]:
            ways.append(attended(words, regions, smoothing[0], focus))
        if smoothing[1]:
            ways.append(attended(regions, words, smoothing[1], focus))
        expected = float(torch.stack(ways).mean().detach())
        assert float(found[i, c].detach()) == pytest.approx(expected, abs=2e-6)


def test_bfan_hides_whole_regions_before_its_focus():
    """Erasing equals deleting the regions that look least like their image's mean region."""
    plain = built("bfan")
    erasing = built("bfan", erase="low", erase_rule="topk", erase_threshold=4)
    erasing.image_encoder.encoder.load_state_dict(plain.image_encoder.state_dict())
    erasing.text_encoder.load_state_dict(plain.text_encoder.state_dict())
    images, captions = encoded(plain)
    fewer, _ = encoded(erasing)
    scores = erasing.score(fewer, captions)
    for i in range(4):
        regions = images.fragments[i]
        attention = (20 * F.cosine_similarity(regions, regions.mean(0)[None])).softmax(0)
        kept = regions[attention.argsort(descending=True)[:4]]
        assert int(fewer.lengths[i]) == 4
        expected = plain.score(Encoded(kept[None], None), captions)
        torch.testing.assert_close(scores[i : i + 1], expected)


def test_relations_equal_the_published_block():
    """``(V W_theta)(V W_phi)^T / N`` without a softmax, batch norm over images and regions."""
    torch.manual_seed(0)
    block = Relations(6)
    regions = torch.randn(5, 4, 6)
    assert torch.equal(block(regions), regions), "a new block changes nothing"
    torch.nn.init.normal_(block.norm.weight)
    theta, phi, g = block.theta_phi_g.weight.chunk(3)
    biases = block.theta_phi_g.bias.chunk(3)
    update = torch.empty(5, 4, 6)
    for i, v in enumerate(regions):
        affinity = (v @ theta.t() + biases[0]) @ (v @ phi.t() + biases[1]).t() / 4
        update[i] = affinity @ (v @ g.t() + biases[2]) @ block.back.weight.t() + block.back.bias
    flat = update.reshape(20, 6)
    normed = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + block.norm.eps).sqrt()
    expected = regions + (normed * block.norm.weight + block.norm.bias).view(5, 4, 6)
    torch.testing.assert_close(block(regions), expected, rtol=1e-4, atol=1e-5)


def test_vsrn_pools_the_states_of_its_gru_by_attention():
    model = built("vsrn", relations=2)
    encoder = model.image_encoder
    regions = torch.randn(3, 7, 12)
    found = encoder(regions)
    reasoned = encoder.relations(encoder.fragments(regions))
    states = encoder.gru(F.normalize(reasoned, dim=2))[0]
    attention = encoder.pool.score(reasoned).squeeze(2).softmax(1)
    expected = F.normalize((attention[:, :, None] * states).sum(1), dim=1)
    torch.testing.assert_close(found.vector, expected)
    torch.testing.assert_close(found.attention, attention)


MODULES = {"age": {"erase": "low"}, "lsns": {"bank": 40}, "wil": {"weighting": 5.0}}
MODULES["all"] = {**MODULES["age"], **MODULES["lsns"], **MODULES["wil"]}
MODULES["online"] = {**MODULES["all"], "bank_keys": "online"}
MODULES["hinge"] = {"loss": "hinge", **MODULES["age"], **MODULES["lsns"]}


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_module(icons, tmp_path, name, modules):
    """Two real steps: finite losses, a gradient for every weight, and weights that moved."""
    direction = {"direction": "both"} if name == "scan" else {}
    config = TrainConfig(
        data="icons_100", model=name, dim=16, word_dim=8, threads=1, **direction, **MODULES[modules]
    )
    trainer = Trainer(config, tmp_path / "run")
    trainer.model.train()
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    for start in (0, 30):
        assert np.isfinite(trainer.train_step(trainer.batch_of(np.arange(start, start + 30))))
        trainer.step += 1
    for parameter, value in trainer.model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert not torch.equal(value, before[parameter]), parameter


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_banks_fill_just_before_they_count(icons, tmp_path, name):
    """A run with a late bank is the run without one until then, and pays for no keys."""
    shared = {"data": "icons_100", "model": name, "dim": 16, "word_dim": 8, "threads": 1}
    late = TrainConfig(**shared, bank=10, bank_start=5, bank_share=0.5)  # 5 keys a step: two steps
    with_bank = Trainer(late, tmp_path / "bank")
    without = Trainer(TrainConfig(**shared), tmp_path / "none")
    filled = []
    for step in range(7):
        losses = []
        for trainer in (with_bank, without):
            torch.manual_seed(step)  # dropout
            trainer.model.train()
            losses.append(
                trainer.train_step(trainer.batch_of(np.arange(10 * step, 10 * step + 10)))
            )
            trainer.step += 1
        assert (losses[0] == losses[1]) == (step < 5), step
        filled.append(int(with_bank.objective.image_bank.count))
    assert filled == [0, 0, 0, 5, 10, 10, 10]


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_online_keys_are_the_models_own_encodings(icons, tmp_path, name):
    """A step encodes once, stores what it encoded before the update, and has no slow copies."""
    config = TrainConfig(
        data="icons_100", model=name, dim=16, word_dim=8, threads=1, dropout=0.1, bank=20,
        bank_share=0.5, bank_keys="online",
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.momentum == []
    trainer.model.train()
    encoded = []
    trainer.model.image_encoder.register_forward_hook(lambda *call: encoded.append(call[2]))
    trainer.train_step(trainer.batch_of(np.arange(10)))
    (images,) = encoded
    expected = images.vector if name == "vse" else images.fragments
    stored = trainer.objective.image_bank.rows
    assert torch.equal(stored[:5], expected[:5].detach())
    assert not stored[5:].any()


def test_weights_are_what_the_modules_cost_nothing_of():
    """Erasing, banks and weighting add no parameter to a model."""
    for name in MODELS:
        sizes = {
            sum(p.numel() for p in built(name, **modules).parameters())
            for modules in ({}, MODULES["all"])
        }
        assert len(sizes) == 1, name


@pytest.mark.parametrize("name", MODELS)
def test_sentence_embeddings_join_the_words(family, name):
    rng = np.random.default_rng(0)
    for part in ("train", "dev", "test"):
        rows = rng.standard_normal((30, 9), dtype=np.float32)
        np.save(family / f"{part}_sbert.npy", rows)
    part = load_part(family, "test", "sbert")
    config = TrainConfig(model=name, dim=16, word_dim=8)
    torch.manual_seed(0)
    model = build_model(config, 2048, 50, 9)
    words = [[5, 6, 7]] * 30  # only the sentence embeddings tell the captions apart
    scores = score_part(model, part, words, block=7)
    assert np.ptp(scores, axis=1).min() > 1e-4
    np.testing.assert_allclose(score_part(model, part, words, hold_bytes=1), scores, atol=2e-6)
    blind = score_part(model, load_part(family, "test"), words)
    assert np.ptp(blind, axis=1).max() < 1e-5


def test_broken_sentence_embeddings(family):
    with pytest.raises(UserError, match=r"test_sbert.npy is missing"):
        load_part(family, "test", "sbert")
    np.save(family / "test_sbert.npy", np.ones((29, 4), np.float32))
    with pytest.raises(UserError, match=r"floats \(30 captions, numbers\), got float32 \(29, 4\)"):
        load_part(family, "test", "sbert")
    np.save(family / "test_sbert.npy", np.full((30, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="NaN or infinite"):
        load_part(family, "test", "sbert")
