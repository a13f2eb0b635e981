"""Retrieval scores against a brute force that sorts."""

import numpy as np
import pytest
import torch

from sede_kernels.training import evaluate
from sede_kernels.training.evaluate import chance, table
from sede_kernels.training.files import UserError
from sede_kernels.training.similarities import Similarities, compare_part, score_part


def matrix(scores):
    return Similarities(torch.from_numpy(np.ascontiguousarray(scores)))


def ranks(scores, pairs):
    return matrix(scores).ranks(pairs)


def summarize(scores, pairs, folds=1):
    return evaluate.summarize(matrix(scores), pairs, folds)


def brute_force_ranks(scores, pairs):
    """Sort every query's candidates; wrong ones win ties; the best right one counts."""

    def rank(values, right):
        order = sorted(range(len(values)), key=lambda j: (-values[j], j in right))
        return min(order.index(j) for j in right)

    captions = [{c for c, i in pairs if i == image} for image in range(len(scores))]
    images = [{i for c, i in pairs if c == caption} for caption in range(scores.shape[1])]
    return (
        [rank(scores[i], right) for i, right in enumerate(captions) if right],
        [rank(scores[:, c], right) for c, right in enumerate(images) if right],
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [1, 3, 10_000], ids=["all-tied", "many-ties", "distinct"])
def test_ranks_equal_brute_force(seed, levels):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(levels, size=(13, 29)) / levels).astype(np.float32)
    pairs = {(c, int(rng.integers(13))) for c in range(29)}
    pairs |= {(int(rng.integers(29)), int(rng.integers(13))) for _ in range(9)}
    found = ranks(scores, np.array(sorted(pairs)))
    expected = brute_force_ranks(scores, sorted(pairs))
    assert [f.tolist() for f in found] == [*expected]


def test_block_borders_do_not_matter(monkeypatch):
    monkeypatch.setattr("sede_kernels.training.similarities.BLOCK", (64, 100))
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((523, 523), dtype=np.float32)
    pairs = np.stack([np.arange(523)] * 2, 1)
    i2t, t2i = ranks(scores, pairs)
    right = scores.diagonal()
    assert (i2t == (scores > right[:, None]).sum(1)).all()
    assert (t2i == (scores > right).sum(0)).all()


def test_collapsed_and_nan_models_score_nothing():
    pairs = np.stack([np.arange(20)] * 2, 1)
    for value in (0.0, np.nan):
        result = summarize(np.full((20, 20), value, np.float32), pairs)
        assert result.rsum == 0
        assert result.median_ranks == (20, 20)


def test_perfect_model_and_rsum():
    result = summarize(np.eye(12, dtype=np.float32), np.stack([np.arange(12)] * 2, 1))
    assert result.rsum == 600
    assert result.median_ranks == (1, 1)


def test_hand_computed_recalls():
    # Image 0 ranks its captions 0, 1 first; image 1 finds caption 3 third.
    scores = np.array([[9, 8, 1, 0], [7, 6, 2, 5]], np.float32)
    pairs = np.array([[0, 0], [1, 0], [2, 1], [3, 1]])
    result = summarize(scores, pairs)
    assert result.image_to_text == (50, 100, 100)
    assert result.text_to_image == (100, 100, 100)
    assert result.median_ranks == (2, 1)  # ranks 0 and 2: floor(1) + 1
    assert result.queries == (2, 4)


def test_folds_are_means_of_runs_of_images():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((20, 100), dtype=np.float32)
    pairs = np.stack([np.arange(100), np.arange(100) // 5], 1)
    folds = []
    for f in range(5):
        block = scores[4 * f : 4 * f + 4, 20 * f : 20 * f + 20]
        folds.append(summarize(block, np.stack([np.arange(20), np.arange(20) // 5], 1)))
    result = summarize(scores, pairs, folds=5)
    assert result.rsum == pytest.approx(np.mean([f.rsum for f in folds]))
    assert result.text_to_image == pytest.approx(np.mean([f.text_to_image for f in folds], 0))
    with pytest.raises(UserError, match="--folds must divide the 20 images"):
        summarize(scores, pairs, folds=3)


def test_chance_is_the_mean_of_random_orders():
    pairs = np.array([[c, c // 2] for c in range(14)] + [[0, 3]])
    expected = chance(7, 14, pairs)
    rng = np.random.default_rng(0)
    draws = [summarize(rng.random((7, 14), dtype=np.float32), pairs) for _ in range(3000)]
    means = np.mean([d.image_to_text + d.text_to_image for d in draws], 0)
    np.testing.assert_allclose(expected.image_to_text + expected.text_to_image, means, atol=1.5)


def test_chance_of_one_right_answer():
    pairs = np.stack([np.arange(1000)] * 2, 1)
    assert chance(1000, 1000, pairs).text_to_image == pytest.approx((0.1, 0.5, 1.0))


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_blocked_scores_equal_one_block(family, name):
    """Captions of different lengths are padded per block; that must not change a score."""
    from sede_kernels.training.config import TrainConfig
    from sede_kernels.training.data.precomp import load_part
    from sede_kernels.training.run import build_model

    torch.manual_seed(0)
    part = load_part(family, "test")
    model = build_model(TrainConfig(model=name, dim=16, word_dim=8), 2048, 50)
    rng = np.random.default_rng(0)
    words = [rng.integers(1, 50, size=rng.integers(1, 9)).tolist() for _ in part.captions]
    whole = score_part(model, part, words, block=64)
    assert model.training
    np.testing.assert_allclose(score_part(model, part, words, block=4), whole, atol=2e-6)
    one = score_part(model, part, words[3:4], block=1)
    np.testing.assert_allclose(one[:, 0], whole[:, 3], atol=2e-6)
    found = compare_part(model, part, words)
    assert found.shape == whole.shape and (found.captions is None) == (name == "scan")
    np.testing.assert_allclose(found.column(3), whole[:, 3], atol=2e-6)
    assert evaluate.summarize(found, part.pairs, 2) == summarize(whole, part.pairs, 2)
    for compare in (score_part, compare_part):
        with pytest.raises(IndexError):
            compare(model, part, [[50]])  # a word that the model does not know
        assert model.training


def test_table_lines_up():
    result = summarize(np.eye(12, dtype=np.float32), np.stack([np.arange(12)] * 2, 1))
    lines = table({"base": result, "vse+erase": result}).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["base", *["100.0"] * 6, "600.0", "1", "/", "1"]
    assert lines[2].index("600.0") == lines[3].index("600.0")
