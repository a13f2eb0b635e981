"""Settings that change where a run is resumed: on purpose, from the next step on, and on record."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training.run import read_config

from .conftest import TINY, read_log, refused, write_family_folder

EPOCHS = ["--epochs=3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data folder and a run of one epoch in it."""
    home = tmp_path_factory.mktemp("changes")
    write_family_folder(home / "tiny_precomp", regions=3, width=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEDE_DATA", str(home))
        assert main(["train", "--data=tiny", *TINY, "--bank=8", "--out", str(home / "run")]) == 0
    return home


@pytest.fixture
def run(home, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEDE_DATA", str(home))
    return shutil.copytree(home / "run", tmp_path / "a run")


def resumed(run: Path, *flags: str) -> dict:
    assert main(["train", "--resume", str(run), *EPOCHS, *flags]) == 0
    return torch.load(run / "last.pt", weights_only=True)


def test_another_learning_rate_holds_from_the_next_step_on(run, capfd):
    began = read_config(run)
    state = resumed(run, "--lr=0.0005", "--weight-decay=0.25")
    said = capfd.readouterr().err
    assert "From step 5 on: lr 0.002 becomes 0.0005, weight_decay 0.0001 becomes 0.25" in said
    (group,) = state["optimizer"]["param_groups"]
    last = 0.0005 * 0.5 * (1 + math.cos(math.pi * 11 / 12))  # of 12 steps, the last
    assert group["lr"] == pytest.approx(last)
    assert group["weight_decay"] == 0.25
    now = replace(began, epochs=3, lr=0.0005, weight_decay=0.25)
    assert read_config(run) == now and state["config"]["lr"] == 0.0005
    noted = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert noted == [{"step": 4, "lr": [0.002, 0.0005], "weight_decay": [0.0001, 0.25]}]
    assert [line["epoch"] for line in read_log(run)] == [0, 1, 2]
    # Once changed, it is the run's: nothing has to be said again.
    assert main(["train", "--resume", str(run)]) == 0


def test_the_same_value_changes_nothing(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    plain, given = resumed(run), resumed(other, "--lr=0.002", "--temperature=0.05")
    assert not (run / "changes.jsonl").exists() and not (other / "changes.jsonl").exists()
    for name, value in plain["model"].items():
        assert torch.equal(value, given["model"][name]), name
    # A higher learning rate does.
    third = shutil.copytree(run.parents[0] / "other", tmp_path / "third")
    assert resumed(third, "--epochs=4", "--lr=0.1")["model"].keys() == plain["model"].keys()
    assert not all(
        torch.equal(value, torch.load(third / "last.pt", weights_only=True)["model"][name])
        for name, value in plain["model"].items()
    )


def test_an_edit_without_the_flag_names_the_flag(run, capfd):
    path = run / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "lr": 0.5, "epochs": 2}))
    said = refused(capfd, "train", "--resume", run)
    assert said.endswith(
        "last.pt was made with lr 0.002 and config.json beside it says 0.5: put it back, or change "
        f"it on purpose by `sede train --resume '{run}' --lr 0.5`."
    )
    assert main(["train", "--resume", str(run), "--lr", "0.5"]) == 0
    assert json.loads((run / "changes.jsonl").read_text()) == {"step": 4, "lr": [0.002, 0.5]}


@pytest.mark.parametrize("value", ["-1", "nan", "1e308"])
def test_a_value_that_cannot_be_is_refused_before_anything_changes(value, run, capfd):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert "lr " in refused(capfd, "train", "--resume", run, f"--lr={value}")
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
