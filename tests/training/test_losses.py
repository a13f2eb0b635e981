"""The losses of the objectives, and what they exclude."""

from dataclasses import replace

import pytest
import torch

from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError
from sede_kernels.training.losses import hardest_hinge
from sede_kernels.training.models import Encoded
from sede_kernels.training.objective import FragmentObjective, VectorObjective
from sede_kernels.training.ranks import Ranks
from sede_kernels.training.run import build_model


def test_hinge_by_hand():
    losses = hardest_hinge(torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0.6, 0.2, -torch.inf]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([0.3, 0.0, 0.0]))


def test_ranks_with_a_row_each_and_no_other_negatives_are_refused():
    alone = TrainConfig(batch_size=2, batch_negatives="rank")
    with pytest.raises(UserError, match="leaves each of the 2 processes one row at most"):
        VectorObjective(alone, 8, Ranks(0, 2))
    for config in (replace(alone, batch_size=3), replace(alone, batch_negatives="all")):
        assert VectorObjective(config, 8, Ranks(1, 2)).config is config


def _vectors(rows, dim=8):
    vectors = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).requires_grad_()
    return vectors, Encoded(vectors[:, None], None, vectors)


@pytest.mark.parametrize("loss", ["infonce", "hinge"])
def test_vector_objective_sees_batch_and_bank_but_no_other_caption_of_the_image(loss):
    torch.manual_seed(0)
    config = TrainConfig(bank=10, loss=loss, margin=0.4, temperature=0.1)
    objective = VectorObjective(config, 8)
    ids = torch.tensor([4, 9, 4])
    (image, images), (caption, captions) = _vectors(3), _vectors(3)
    (stored_image, stored_images), (stored_caption, stored_captions) = _vectors(4), _vectors(4)
    bank_ids = torch.tensor([4, 7, 9, 8])
    (old_image, old_images), (old_caption, old_captions) = _vectors(3), _vectors(3)
    objective.enqueue((stored_images, stored_captions), bank_ids)
    found = objective(images, captions, ids, (old_images, old_captions))

    rows = []
    sides = ((image, old_caption, stored_caption), (caption, old_image, stored_image))
    for query, key, bank in sides:
        keys, key_ids = torch.cat([key, bank]), torch.cat([ids, bank_ids])
        for i in range(3):
            negatives = (query[i] @ keys.t())[key_ids != ids[i]]
            positive = query[i] @ key[i]
            if loss == "hinge":
                rows.append((0.4 + negatives.max() - positive).clamp_min(0))
            else:
                rows.append(torch.logsumexp(torch.cat([positive[None], negatives]) / 0.1, 0))
                rows[-1] = rows[-1] - positive / 0.1
    torch.testing.assert_close(found, torch.stack(rows).mean())
    for ours, theirs in zip(
        torch.autograd.grad(found, (image, caption)),
        torch.autograd.grad(torch.stack(rows).mean(), (image, caption)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_without_keys_the_bank_is_left_alone():
    torch.manual_seed(0)
    objective = VectorObjective(TrainConfig(bank=10), 8)
    ids = torch.arange(3)
    (_, images), (_, captions) = _vectors(3), _vectors(3)
    alone = VectorObjective(TrainConfig(), 8)(images, captions, ids)
    objective.enqueue((_vectors(4)[1], _vectors(4)[1]), torch.arange(10, 14))
    torch.testing.assert_close(objective(images, captions, ids), alone)
    assert objective(images, captions, ids, (images, captions)) > alone


@pytest.mark.parametrize("hardest", [0, 2], ids=["whole-bank", "found-sets"])
@pytest.mark.parametrize("loss", ["infonce", "hinge"])
def test_fragment_objective_equals_pair_by_pair_scores(loss, hardest):
    """Two sets are all that the bank holds; the other keys of the batch count with whole banks."""
    torch.manual_seed(0)
    config = TrainConfig(
        model="scan", bank=6, bank_hardest=hardest, loss=loss, margin=0.4, temperature=0.1, dim=8
    )
    model = build_model(config, 5, 20).eval()
    objective = FragmentObjective(config, model, regions=4, longest=3)
    images = model.image_encoder(torch.randn(3, 4, 5))
    words = torch.tensor([[3, 4, 0], [5, 0, 0], [6, 7, 8]])
    captions = model.text_encoder(words, torch.tensor([2, 1, 3]))
    ids = torch.tensor([0, 1, 0])
    with torch.no_grad():
        old_images = model.image_encoder(torch.randn(2, 4, 5))
        old_captions = model.text_encoder(torch.tensor([[9, 3], [4, 0]]), torch.tensor([2, 1]))
        image_keys = model.image_encoder(torch.randn(3, 4, 5))
        caption_keys = model.text_encoder(words.flip(0), torch.tensor([3, 1, 2]))
    objective.enqueue((old_images, old_captions), torch.tensor([1, 5]))
    found = objective(images, captions, ids, (image_keys, caption_keys))

    bank_ids = torch.tensor([0, 1, 0, 1, 5])
    to_text = [model.score(images, side) for side in (caption_keys, old_captions)]
    to_image = [model.score(side, captions).t() for side in (image_keys, old_images)]
    rows = []
    for scores in (torch.cat(to_text, 1), torch.cat(to_image, 1)):
        for i in range(3):
            counts = bank_ids != ids[i]
            counts[:3] &= hardest == 0
            negatives = scores[i][counts]
            if loss == "hinge":
                rows.append((0.4 + negatives.max() - scores[i, i]).clamp_min(0))
            else:
                both = torch.cat([scores[i, i][None], negatives])
                rows.append(torch.logsumexp(both / 0.1, 0) - scores[i, i] / 0.1)
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=1e-5, atol=1e-6)


def test_only_the_hardest_sets_of_a_fragment_bank_are_scored():
    """A bank of three sets with one near each query: scoring that alone gives the same hinge."""
    torch.manual_seed(0)
    settings = {"model": "scan", "bank": 3, "loss": "hinge", "margin": 0.4, "dim": 8}
    model = build_model(TrainConfig(**settings), 5, 20).eval()
    images = model.image_encoder(torch.randn(2, 4, 5))
    captions = model.text_encoder(torch.tensor([[3, 4], [5, 6]]), torch.tensor([2, 2]))
    far = -images.fragments.mean((0, 1)).expand(1, 4, 8)
    keys = (
        Encoded(torch.cat([captions.fragments.mean(1)[:, None].expand(-1, 4, -1), far]), None),
        Encoded(torch.cat([images.fragments[:, :2], far[:, :2]]), torch.tensor([2, 2, 2])),
    )
    found = []
    for hardest in (1, 0):
        config = TrainConfig(**settings, bank_hardest=hardest)
        objective = FragmentObjective(config, model, regions=4, longest=2)
        objective.enqueue(keys, torch.tensor([7, 8, 9]))
        scored = []
        objective._score = lambda i, c, scored=scored: (
            scored.append(len(i.fragments) * len(c.fragments)) or model.score(i, c)
        )
        objective._score_pairs = lambda i, c, scored=scored: (
            scored.append(model.score_pairs(i, c).numel()) or model.score_pairs(i, c)
        )
        found.append(objective(images, captions, torch.tensor([0, 1]), (images, captions)))
        assert scored == ([2 * 2] * 2 if hardest else [2 * 5] * 2)
    torch.testing.assert_close(*found)


def test_erasing_replaces_the_embedding_or_leaves_it_alone():
    torch.manual_seed(0)
    regions = torch.randn(4, 9, 5)
    vectors = {}
    for how in ("off", "replace", "train", "second"):
        torch.manual_seed(1)
        extra = {} if how == "off" else {"erase": "low", "erase_pass": how}
        model = build_model(TrainConfig(dim=8, dropout=0.0, **extra), 5, 20)
        vectors[how] = model.image_encoder(regions).vector
        vectors[how, "eval"] = model.eval().image_encoder(regions).vector
    assert torch.equal(vectors["second"], vectors["off"])
    assert not torch.allclose(vectors["replace"], vectors["off"])
    assert torch.equal(vectors["replace", "eval"], vectors["replace"])
    assert torch.equal(vectors["train"], vectors["replace"])
    assert torch.equal(vectors["train", "eval"], vectors["off"])


@pytest.mark.parametrize("model", ["scan", "bfan"])
def test_fragments_are_erased_in_the_passes_that_ask_for_it(model):
    regions, words = torch.randn(3, 9, 5), torch.randint(1, 20, (3, 4))
    scores = {}
    for how in ("off", "replace", "train", "second"):
        torch.manual_seed(1)
        extra = {} if how == "off" else {"erase": "high", "erase_pass": how}
        built = build_model(TrainConfig(model=model, dim=8, dropout=0.0, **extra), 5, 20)
        for mode in (True, False):
            built.train(mode)
            images = built.image_encoder(regions)
            captions = built.text_encoder(words, torch.tensor([4, 2, 3]), None)
            scores[how, mode] = built.score(images, captions)
        if how == "second":
            again = built.score(built.erased(images), captions, erased=True)
    assert not torch.allclose(scores["replace", True], scores["off", True])
    assert torch.equal(scores["train", True], scores["replace", True])
    assert torch.equal(scores["train", False], scores["off", False])
    assert torch.equal(scores["second", True], scores["off", True])
    assert torch.equal(scores["second", False], scores["off", False])
    torch.testing.assert_close(again, scores["replace", False])
