"""Evaluation of the SCAN family: ranks, shards, and the same numbers as the published loops."""

import numpy as np
import pytest

from sede_kernels.integrations import bfan, scan
from tests.integrations import published
from tests.integrations.test_scan_family import batch, options


@pytest.mark.parametrize("each", [5, 1], ids=["five", "one"])
def test_evaluation_equals_sorting_every_row(each: int) -> None:
    rng = np.random.default_rng(0)
    sims = rng.normal(size=(40, 40 * each))
    sims[np.arange(40), np.arange(40) * each] += 2.0
    (want_i2t, want_t2i) = published.recall(sims, each)
    metrics, (ranks, top) = scan.i2t(np.empty((40,)), None, None, sims, return_ranks=True)
    np.testing.assert_array_equal(ranks, want_i2t)
    np.testing.assert_array_equal(top, sims.argmax(1))
    assert metrics[0] == 100.0 * (want_i2t < 1).mean()
    assert metrics[3:] == (np.floor(np.median(want_i2t)) + 1, want_i2t.mean() + 1)
    metrics, (ranks, top) = scan.t2i(np.empty((40,)), None, None, sims, return_ranks=True)
    np.testing.assert_array_equal(ranks, want_t2i)
    np.testing.assert_array_equal(top, sims.argmax(0))
    assert bfan.t2i(40, sims) == metrics == scan.t2i(None, None, None, sims)


def test_evaluation_gives_a_collapsed_model_nothing() -> None:
    assert scan.i2t(None, None, None, np.zeros((20, 100)))[0] == 0.0
    assert scan.t2i(None, None, None, np.full((20, 100), np.nan))[0] == 0.0


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_shards_equal_the_whole(direction: str, capsys: pytest.CaptureFixture[str]) -> None:
    opt = options(cross_attn=direction)
    images, captions, lengths = batch(7)
    shard = getattr(scan, f"shard_xattn_{direction}")
    whole = published.scan_scores(images, captions, lengths, opt)
    for size in (3, 128):
        sims = shard(images.numpy(), captions.numpy(), lengths, opt, shard_size=size)
        assert sims.dtype == np.float32
        np.testing.assert_allclose(sims, whole.numpy(), atol=2e-6)
    focal = options(lambda_softmax=20.0)
    np.testing.assert_allclose(
        bfan.shard_xattn(images.numpy(), captions.numpy(), lengths, focal, 4),
        bfan.xattn_score(images, captions, lengths, focal).numpy(),
        atol=1e-5,
    )


@pytest.mark.filterwarnings("error")
def test_evaluation_takes_mirrored_and_locked_arrays() -> None:
    sims = np.random.default_rng(1).normal(size=(6, 30))
    want = scan.i2t(None, None, None, sims.copy())
    mirrored = sims[::-1, ::-1].copy()[::-1, ::-1]
    locked = sims.copy()
    locked.flags.writeable = False
    assert scan.i2t(None, None, None, mirrored) == want == scan.i2t(None, None, None, locked)
