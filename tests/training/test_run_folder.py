"""Edited and damaged run folders, and starts that failed: one sentence, and nothing in the way."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training import checkpoint, loop
from sede_kernels.training.files import UserError
from sede_kernels.training.loop import Trainer

from .conftest import TINY, read_log, refused, write_family_folder
from .test_old_checkpoints import ARCHIVE

WORDS = ["train", "--data=tiny", *TINY, "--bank=8", "--epochs=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 2 epochs."""
    home = tmp_path_factory.mktemp("trained")
    write_family_folder(home / "tiny_precomp", regions=3, width=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEDE_DATA", str(home))
        assert main([*WORDS, "--out", str(home / "run")]) == 0
    return home / "run"


@pytest.fixture
def run(trained, tiny, tmp_path) -> Path:
    """A copy of it that was asked to go on to a third epoch."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    edit(out, epochs=3)
    return out


def edit(out: Path, **values: object) -> None:
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def rewrite(path: Path, **entries: object) -> None:
    """Change entries of a checkpoint, with a checksum that fits."""
    checkpoint.save(path, {**torch.load(path, weights_only=True), **entries})


def without(path: Path, name: str) -> None:
    state = torch.load(path, weights_only=True)
    del state[name]
    checkpoint.save(path, state)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FIT = "last.pt does not fit config.json beside it "
DAMAGE = {
    "dim": (lambda o: edit(o, dim=8), FIT + "(dim was 4, is 8)"),
    "bank": (lambda o: edit(o, bank=16), FIT + "(bank was 8, is 16)"),
    "no-bank": (lambda o: edit(o, bank=0), FIT + "(bank was 8, is 0)"),
    "model": (lambda o: edit(o, model="scan"), FIT + "(model was 'vse', is 'scan')"),
    "lr": (lambda o: edit(o, lr=0.5), "was made with lr 0.002 and config.json beside it says 0.5"),
    "seed": (lambda o: edit(o, seed=7), FIT + "(seed was 0, is 7)"),
    "wrong": (lambda o: edit(o, lr=-1), "lr must be above 0, got -1.0"),
    "unknown": (lambda o: edit(o, lrr=1), "has an unknown setting 'lrr'; did you mean lr?"),
    "newer": (lambda o: edit(o, future=1), "'future': remove it, or take the version of sede-"),
    "infinite": (lambda o: edit(o, lr=float("inf")), "lr must be finite"),
    "list": (lambda o: (o / "config.json").write_text("[1]"), "a table of settings, got a list"),
    "null": (lambda o: (o / "config.json").write_text("null"), "a table of settings, got null"),
    "cut": (lambda o: (o / "config.json").write_text("{"), "): put a copy of it back, or train"),
    "bytes": (lambda o: (o / "config.json").write_bytes(b"\xff\xfe{}"), "config.json is damaged"),
    "deep": (lambda o: (o / "config.json").write_text("[" * 10**5), "config.json is damaged"),
    "empty-table": (lambda o: (o / "config.json").write_text("{}"), "is not prepared under"),
    "no-config": (lambda o: (o / "config.json").unlink(), "is not a run of `sede train`"),
    "no-last": (lambda o: (o / "last.pt").unlink(), "there is no checkpoint"),
    "flipped-last": (lambda o: flip(o / "last.pt"), "last.pt is damaged (it does not match its"),
    "flipped-best": (lambda o: flip(o / "best.pt"), "best.pt is damaged (it does not match its"),
    "bare-last": (lambda o: checkpoint.save(o / "last.pt", {}), "last.pt has no entry 'model'"),
    "no-optimizer": (lambda o: without(o / "last.pt", "optimizer"), "has no entry 'optimizer'"),
    "place": (lambda o: rewrite(o / "last.pt", place="here"), FIT),
    "rng": (lambda o: rewrite(o / "last.pt", rng={"cpu": 3}), FIT),
    "log": (lambda o: rewrite(o / "last.pt", log=[{}]), FIT),
    "sums": (lambda o: rewrite(o / "last.pt", sums=[None, None, 1.0, 2.0]), FIT),
    "weights": (lambda o: rewrite(o / "last.pt", model={}), FIT + "(model: Missing key"),
    "banks": (lambda o: rewrite(o / "last.pt", objective=3), FIT + "(banks: "),
    "slow": (lambda o: rewrite(o / "last.pt", momentum=[]), FIT + "(0 momentum encoders, not 2"),
    "data": (lambda o: rewrite(o / "last.pt", data={}), "was trained on other data"),
    "no-best": (lambda o: (o / "best.pt").unlink(), "there is no checkpoint"),
    "other-best": (lambda o: shutil.copy(o / "last.pt", o / "best.pt"), "has no entry 'features'"),
    "small-best": (lambda o: rewrite(o / "best.pt", model={}), "best.pt does not fit"),
    "no-words": (lambda o: (o / "vocab.json").unlink(), "vocab.json is missing"),
    "bad-words": (lambda o: (o / "vocab.json").write_text("7"), "vocab.json is not a vocabulary"),
    "other-words": (
        lambda o: (o / "vocab.json").write_text(
            (o / "vocab.json").read_text().replace("dog", "cat")
        ),
        "vocab.json numbers other words than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_resume_refuses_before_it_changes_anything(name, run, capfd):
    damage, words = DAMAGE[name]
    damage(run)
    before = files_of(run)
    assert words in refused(capfd, "train", "--resume", run)
    assert files_of(run) == before


EVAL = {
    "config": (lambda o: (o / "config.json").write_text("[1]"), "a table of settings"),
    "dim": (lambda o: edit(o, dim=8), "best.pt does not fit config.json beside it (model: size"),
    "model": (lambda o: edit(o, model="bfan"), "best.pt does not fit config.json beside it"),
    "no-best": (lambda o: (o / "best.pt").unlink(), "there is no checkpoint"),
    "flipped": (lambda o: flip(o / "best.pt"), "best.pt is damaged (it does not match"),
    "last": (lambda o: shutil.copy(o / "last.pt", o / "best.pt"), "has no entry 'features'"),
    "features": (lambda o: rewrite(o / "best.pt", features="6"), "its sizes are no numbers"),
    "words": (lambda o: (o / "vocab.json").write_text("{}"), "vocab.json is not a vocabulary"),
    "no-words": (lambda o: (o / "vocab.json").unlink(), "vocab.json is missing"),
    "other-words": (
        lambda o: (o / "vocab.json").write_text(
            (o / "vocab.json").read_text().replace("dog", "cat")
        ),
        "vocab.json numbers other words than",
    ),
    "one-word": (
        lambda o: (o / "vocab.json").write_text(
            (o / "vocab.json").read_text().replace("dog", "cat", 1)
        ),
        "its tables word2idx and idx2word disagree",
    ),
}


@pytest.mark.parametrize("name", EVAL)
def test_eval_refuses(name, run, capfd):
    damage, words = EVAL[name]
    damage(run)
    assert words in refused(capfd, "eval", run)


def test_a_run_may_get_a_byte_order_mark_and_other_free_settings(run, tiny, capfd):
    """Epochs, patience, checkpoints, threads and the place of the data change no state."""
    moved = tiny.rename(tiny.with_name("moved"))
    edit(run, epochs=4, patience=3, checkpoint_every=1, threads=2, data=str(moved))
    path = run / "config.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert main(["train", "--resume", str(run)]) == 0
    assert [line["epoch"] for line in read_log(run)] == [0, 1, 2, 3]


def test_a_run_of_another_device_is_scored_on_the_cpu(run, capfd):
    assert main(["eval", str(run)]) == 0
    expected = capfd.readouterr().out
    edit(run, device="cuda:99")
    assert main(["eval", str(run)]) == 0
    said = capfd.readouterr()
    assert said.out == expected
    assert "device 'cuda:99' cannot be used here" in said.err
    assert "scoring on the CPU" in said.err
    assert "cuda:99" in refused(capfd, "train", "--resume", run)


LOGS = {
    "missing": (lambda p: p.unlink(), "was missing: its 2 lines were put back"),
    "garbage": (lambda p: p.write_bytes(b"garbage\n" * 500), "was damaged: its 2 lines"),
    "binary": (lambda p: p.write_bytes(bytes(range(256))), "was damaged: its 2 lines"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-20]), "was damaged: its 2 lines"),
    "edited": (lambda p: p.write_text(p.read_text().replace('"epoch": 1', '"epoch": 5')), "dama"),
    "swapped": (lambda p: p.write_text("\n".join(p.read_text().split("\n")[1::-1])), "was damaged"),
    "whole": (lambda p: None, None),
    "later": (lambda p: p.write_text(p.read_text() + '{"epoch": 2}\n{"epo'), None),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_damaged_log_is_put_back(name, run, capfd):
    """The log of a resumed run is that of an uninterrupted one, whatever became of the file."""
    damage, words = LOGS[name]
    before = (run / "metrics.jsonl").read_bytes()
    damage(run / "metrics.jsonl")
    capfd.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    said = capfd.readouterr().err
    assert (words is None and "metrics.jsonl" not in said) or words in said
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    assert [line["epoch"] for line in read_log(run)] == [0, 1, 2]


def test_the_log_of_a_run_of_the_first_version(tiny, tmp_path, monkeypatch, capfd):
    """Its checkpoints hold no copy: what is readable stays, and what is lost is named."""
    monkeypatch.setenv("SEDE_DATA", str(tiny.parent))
    for name, text, lost in (("vse", b"garbage\n", True), ("scan", None, False)):
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(tmp_path / name)
        out = tmp_path / name / name
        whole = (out / "metrics.jsonl").read_bytes()
        (out / "metrics.jsonl").write_bytes(text or whole + b'{"epoch": 1, "cut')
        assert main(["train", "--resume", str(out)]) == 0
        said = capfd.readouterr().err
        assert ("has no readable line of epoch 1; it goes on without" in said) == lost
        epochs = [line["epoch"] for line in read_log(out)]
        assert epochs == ([1] if lost else [0, 1])
        assert lost or (out / "metrics.jsonl").read_bytes().startswith(whole)


def test_an_old_checkpoint_with_other_settings(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SEDE_DATA", str(tiny.parent))
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    for values in ({"dim": 8}, {"bank": 9}, {"bank": 0}, {"model": "bfan"}, {"word_dim": 5}):
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extract("vse/config.json", tmp_path)
        edit(tmp_path / "vse", **values)
        assert FIT in refused(capfd, "train", "--resume", tmp_path / "vse"), values


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("no"), 1), (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1),
     (MemoryError(), 1), (ValueError("a fault of ours"), None)],
    ids=["refused", "full-disk", "ctrl-c", "memory", "numpy-memory", "fault"],
)  # fmt: skip
@pytest.mark.parametrize("step", [0, 2], ids=["first-step", "third-step"])
def test_a_failed_start_leaves_nothing(error, status, step, tiny, tmp_path, monkeypatch, capfd):
    out = tmp_path / "runs" / "run"
    real = Trainer.train_step

    def failing(self, captions):
        if self.step == step:
            raise error
        return real(self, captions)

    monkeypatch.setattr(Trainer, "train_step", failing)
    words = [*WORDS, "--out", str(out)]
    if status is None:
        with pytest.raises(ValueError, match="a fault of ours"):
            main(words)
    else:
        assert main(words) == status
        said = capfd.readouterr().err.strip().splitlines()
        assert len([line for line in said if line.startswith("sede:")]) == 1, said
        assert "resume" not in said[-1]
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(Trainer, "train_step", real)
    assert main([*words, "--dim=8"]) == 0, "the corrected command runs in the same folder"
    assert json.loads((out / "config.json").read_text())["dim"] == 8


def test_a_failed_start_keeps_what_was_there(tiny, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    (out / "tensorboard").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "tensorboard" / "notes.txt").write_text("mine")

    def failing(self, captions):
        raise UserError("no")

    monkeypatch.setattr(Trainer, "train_step", failing)
    assert refused(capfd, *WORDS, "--out", out) == "no"
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert left == ["notes.txt", "tensorboard", "tensorboard/notes.txt"]


def test_a_failure_after_the_first_epoch_keeps_the_run(tiny, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    real = Trainer.train_step

    def failing(self, captions):
        if self.step == 6:
            raise OSError(28, "No space left on device", str(out / "last.pt"))
        return real(self, captions)

    monkeypatch.setattr(Trainer, "train_step", failing)
    said = refused(capfd, *WORDS, "--out", out)
    assert "the disk is full" in said
    assert said.endswith(f"go on with `sede train --resume {out}`.")
    assert "holds a run already" in refused(capfd, *WORDS, "--out", out)
    monkeypatch.setattr(Trainer, "train_step", real)
    assert main(["train", "--resume", str(out)]) == 0
    assert [line["epoch"] for line in read_log(out)] == [0, 1]


def test_a_start_that_was_killed_is_no_run(tiny, tmp_path, capfd):
    """SIGKILL, by the system for want of memory say, before a checkpoint of any step."""
    out = tmp_path / "run"
    assert main([*WORDS, "--out", str(out)]) == 0
    whole = files_of(out)
    trainer = Trainer(loop.read_config(out), out)
    for kept in (["config.json", "vocab.json", "last.pt"], ["vocab.json", "last.pt"],
                 ["vocab.json"], ["config.json"]):  # fmt: skip
        shutil.rmtree(out)
        out.mkdir()
        trainer.save()  # of step 0
        begun = {**whole, "last.pt": (out / "last.pt").read_bytes()}
        (out / "last.pt").unlink()
        for name in kept:
            (out / name).write_bytes(begun[name])
        assert main([*WORDS, "--dim=8", "--out", str(out)]) == 0, kept
        assert [line["epoch"] for line in read_log(out)] == [0, 1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "best.pt", "test.json", "changes.jsonl"])
def test_files_of_a_run_without_its_settings_are_not_mixed_with_a_new_one(
    name, tiny, tmp_path, capfd
):
    out = tmp_path / "run"
    out.mkdir()
    (out / name).write_bytes(b"old")
    assert f"holds {name} of a run without its config.json" in refused(capfd, *WORDS, "--out", out)
    assert files_of(out) == {name: b"old"}


def test_what_a_kill_left_is_named_and_goes(run, capfd):
    for name in (".last.pt.77.tmp", ".metrics.jsonl.00ff.tmp", ".mine.7.tmp"):
        (run / name).write_bytes(b"half")
    capfd.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    said = capfd.readouterr().err
    assert ".last.pt.77.tmp, .metrics.jsonl.00ff.tmp" in said
    assert sorted(path.name for path in run.glob(".*")) == [".mine.7.tmp"]
