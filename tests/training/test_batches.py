"""Batches read by workers are those read in place, and training with them is the same."""

import json
import time

import numpy as np
import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training.data.batches import Batches, read_ahead
from sede_kernels.training.data.precomp import load_part
from tests.training.conftest import TINY, read_log


@pytest.fixture
def batches(tiny):
    part = load_part(tiny, "train")
    words = [[1 + n % 5] * (1 + n % 4) for n in range(len(part.captions))]
    return Batches(part, words, np.random.default_rng(0).permutation(30), 8)


@pytest.mark.parametrize("first", [0, 3, 4])
def test_workers_read_what_is_read_in_place(batches, first):
    before = torch.get_rng_state()
    expected = list(read_ahead(batches, first, 0, "cpu"))
    assert len(expected) == len(batches) - first
    found = list(read_ahead(batches, first, 2, "cpu"))
    for one, other in zip(found, expected, strict=True):
        assert one.sentences is None
        for a, b in zip(one, other, strict=True):
            assert a is b or torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before), "dropout would change"


def test_a_batch_is_its_captions(batches):
    last = batches[3]
    captions = batches.order[24:]
    assert len(last.ids) == 6 and last.lengths.tolist() == [1 + n % 4 for n in captions]
    for row, caption in enumerate(captions):
        image = batches.part.image_of[caption]
        assert torch.equal(last.regions[row], torch.from_numpy(batches.part.features[image].copy()))
        assert last.words[row, : last.lengths[row]].tolist() == batches.words[caption]


def test_a_run_with_workers_equals_one_without(tiny, tmp_path, capfd):
    for name, workers in (("none", "0"), ("two", "2")):
        out = str(tmp_path / name)
        command = ["train", "--data=tiny", *TINY, "--bank=20", f"--workers={workers}"]
        assert main([*command, "--out", out]) == 0
        assert "% of it waiting for data" in capfd.readouterr().out
    assert read_log(tmp_path / "none") == read_log(tmp_path / "two")
    results = [json.loads((tmp_path / name / "test.json").read_text()) for name in ("none", "two")]
    assert results[0]["test"] == results[1]["test"]


def test_the_share_of_waiting_is_on_file(tiny, tmp_path, monkeypatch):
    """Reading takes at least 0.2 s an epoch, and every other second of the two is counted."""
    real = Batches.__getitem__

    def slow(self, number):
        time.sleep(0.05)
        return real(self, number)

    monkeypatch.setattr(Batches, "__getitem__", slow)
    out = tmp_path / "run"
    command = ["train", "--data=tiny", *TINY, "--epochs=2", "--out", str(out)]
    assert main(command) == 0
    found = json.loads((out / "test.json").read_text())
    assert 100 * 8 * 0.05 / found["train_seconds"] < found["waiting_percent"] + 1 <= 101
