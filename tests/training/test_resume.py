"""Train on real icons, kill the process in mid-epoch, go on: bit for bit the same run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sede_kernels.training import checkpoint
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError
from sede_kernels.training.loop import StoppedError, Trainer, resume, train

from .conftest import read_log

MODULES = {
    "erase": "high",
    "bank": 30,
    "weighting": 5.0,
    "bank_start": 16,
}  # the bank fills from step 6 on
# 70 captions in batches of 3: 24 steps an epoch, the last one of a single caption.
SMALL = {"data": "icons_100", "batch_size": 3, "dim": 16, "word_dim": 8, "checkpoint_every": 4}
MODELS = {
    "vse": {"model": "vse", "erase_pass": "second", **MODULES},
    "scan": {"model": "scan", **MODULES},
    "online": {"model": "bfan", "bank_keys": "online", **MODULES},
    "hinge": {"model": "vse", "loss": "hinge", "bank": 30, "erase": "low"},
}


def settings(name: str, epochs: int = 4) -> TrainConfig:
    return TrainConfig(epochs=epochs, threads=1, **SMALL, **MODELS[name])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sede_kernels.cli", *map(str, words)]


def flags(config: TrainConfig) -> list[str]:
    values = json.loads(config.to_json())
    pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in values.items() if v is not None)
    return [word for pair in pairs for word in pair]


def same(a: object, b: object) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_of(out: Path) -> dict:
    """``last.pt`` without what depends on the clock."""
    state = checkpoint.load(out / "last.pt")
    del state["log_bytes"]
    state["sums"] = state["sums"][0]
    return state


def kill_in_mid_epoch(process: subprocess.Popen, out: Path) -> list[int]:
    """SIGKILL once a checkpoint lies inside the second or a later epoch; returns its place."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "last.pt").exists():
            epoch, batch, _ = checkpoint.load(out / "last.pt")["place"]
            if epoch >= 1 and batch > 0:
                break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return checkpoint.load(out / "last.pt")["place"]


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_resume_after_sigkill_equals_the_uninterrupted_run(name, tmp_path, environment):
    config = settings(name)
    expected = train(config, tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command("train", "--out", out, *flags(config)),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    epoch, batch, _ = kill_in_mid_epoch(process, out)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= epoch < config.epochs
    assert batch > 0
    assert not (out / "test.json").exists()
    assert not list(out.glob(".*.tmp")) or (out / "last.pt").exists()

    assert resume(out) == expected
    assert same(state_of(out), state_of(tmp_path / "whole"))
    best = [checkpoint.load(tmp_path / run / "best.pt") for run in ("whole", "killed")]
    assert same(*best)
    assert read_log(out) == read_log(tmp_path / "whole")


def test_every_place_resumes(icons, tmp_path):
    """Stop after each of several steps, the last of an epoch and single-caption ones included."""
    config = settings("hinge", epochs=2)
    train(config, tmp_path / "whole")
    whole = state_of(tmp_path / "whole")
    for stop in (1, 23, 24, 47):
        out = tmp_path / f"stop{stop}"
        first = start(config, out)
        step = first.train_step
        steps = []

        def counted(rows, step=step, steps=steps, stop=stop, first=first):
            steps.append(len(rows))
            first.interrupted = len(steps) == stop
            return step(rows)

        first.train_step = counted
        with pytest.raises(StoppedError):
            first.run()
        assert len(steps) == stop
        resume(out)
        assert same(state_of(out), whole), f"stopped after step {stop}"


def start(config: TrainConfig, out: Path) -> Trainer:
    """A run that has written its first files and not begun."""
    trainer = Trainer(config, out)
    out.mkdir()
    (out / "vocab.json").write_text(trainer.corpus.vocabulary.to_json())
    (out / "config.json").write_text(config.to_json())
    trainer.save()
    return trainer


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "scheduler"])
def test_a_stop_keeps_the_step_and_tells_how_to_go_on(kind, tmp_path, environment):
    out = tmp_path / "run"
    config = settings("vse", epochs=200)
    process = subprocess.Popen(
        command("train", "--out", out, *flags(config)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(kind)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with `sede train --resume {out}`" in said
    assert "Traceback" not in errors
    place = checkpoint.load(out / "last.pt")["place"]
    assert place[2] >= 24


def test_log_and_checkpoints_hold_what_they_should(icons, tmp_path):
    config = settings("vse", epochs=2)
    result = train(config, tmp_path / "run")
    records = read_log(tmp_path / "run")
    assert [r["epoch"] for r in records] == [0, 1]
    assert [r["step"] for r in records] == [24, 48]
    stored = json.loads((tmp_path / "run" / "test.json").read_text())
    assert stored["test"]["rsum"] == result.rsum
    assert stored["dev_rsum"] == max(r["dev"]["rsum"] for r in records)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert {"model", "momentum", "objective", "optimizer", "rng", "place"} <= state.keys()
    ids = state["objective"]["image_bank.ids"]
    assert (ids >= 0).all(), "30 slots after 140 keys"


def test_training_learns_the_training_set(icons, tmp_path):
    """A model with the three modules that cannot fit 70 icons has a broken gradient somewhere."""
    from sede_kernels.training.evaluate import chance, summarize
    from sede_kernels.training.run import load_best, load_corpus
    from sede_kernels.training.similarities import compare_part

    config = TrainConfig(
        data="icons_100", epochs=25, batch_size=16, dim=64, lr=3e-3, dropout=0.0, erase="high",
        erase_pass="second", bank=128, weighting=5.0,
    )  # fmt: skip
    train(config, tmp_path / "run")
    trainer = Trainer(config, tmp_path / "run")
    trainer.restore()
    part, words = trainer.corpus.parts["train"], trainer.corpus.words["train"]
    fitted = summarize(compare_part(trainer.model, part, words), part.pairs)
    level = chance(len(part.rows), len(part.captions), part.pairs)
    assert level.rsum < 50
    assert fitted.rsum > 500
    _, best, vocabulary = load_best(tmp_path / "run")
    assert not best.training
    assert load_corpus("icons_100", ("test",), vocabulary).parts["test"].features.shape[0] == 20


def test_early_stop(icons, tmp_path):
    config = TrainConfig(epochs=50, patience=2, lr=1e-9, **SMALL)
    train(config, tmp_path / "run")
    records = read_log(tmp_path / "run")
    best = max(range(len(records)), key=lambda i: (records[i]["dev"]["rsum"], -i))
    assert len(records) == best + 3


def test_refusals(icons, tmp_path):
    config = settings("vse", epochs=1)
    out = tmp_path / "run"
    train(config, out)
    with pytest.raises(UserError, match="holds a run already"):
        train(config, out)
    with pytest.raises(UserError, match="is not a run"):
        resume(tmp_path)
    state = checkpoint.load(out / "last.pt")
    checkpoint.save(out / "last.pt", {**state, "data": {"train": [1, 2, 3]}})
    with pytest.raises(UserError, match="was trained on other data"):
        resume(out)
    whole = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last.pt is damaged"):
        resume(out)
    (out / "last.pt").unlink()
    with pytest.raises(UserError, match="there is no checkpoint"):
        resume(out)


def test_a_loss_that_is_not_finite_stops_the_run(icons, tmp_path):
    trainer = start(settings("vse", epochs=1), tmp_path / "run")
    torch.nn.init.constant_(trainer.model.text_encoder.embed.weight, float("nan"))
    with pytest.raises((UserError, ValueError), match=r"nan|NaN"):
        trainer.run()
