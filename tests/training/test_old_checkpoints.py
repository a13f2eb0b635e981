"""Runs that version 0.1.0 left behind go on and score as they would have with it.

``data/runs_0.1.0.zip`` holds two runs of 8 steps, stopped after step 6: config, vocabulary, log,
``best.pt`` and ``last.pt`` as 0.1.0 wrote them, and beside each the log and the test scores of the
same run when nothing stopped it. Their data is ``write_family_folder(..., regions=3, width=6)``.
"""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training import loop
from sede_kernels.training.loop import Trainer, resume
from sede_kernels.training.run import load_best, read_config

from .conftest import read_log, write_family_folder

ARCHIVE = Path(__file__).parent / "data" / "runs_0.1.0.zip"
NAMES = ("vse", "scan")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The archive unpacked beside the data that its runs name; keys in fp32 as when they ran."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("SEDE_DATA", str(tmp_path))
    monkeypatch.setattr(loop, "multiplies_bf16", lambda device: False)
    write_family_folder(tmp_path / "tiny_precomp", regions=3, width=6)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def expected(runs: Path, name: str) -> tuple[list[dict], dict]:
    """What 0.1.0 logged and scored without a stop."""
    log = [json.loads(line) for line in (runs / f"{name}.metrics.jsonl").read_text().splitlines()]
    return log, json.loads((runs / f"{name}.test.json").read_text())["test"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_to_the_figures_it_would_have_reached(name, runs):
    log, test = expected(runs, name)
    result = resume(runs / name)
    found = read_log(runs / name)
    assert [record["step"] for record in found] == [4, 8]
    for ours, theirs in zip(found, log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["dev"]["rsum"] == pytest.approx(theirs["dev"]["rsum"])
    assert result.rsum == pytest.approx(test["rsum"])


@pytest.mark.parametrize("name", NAMES)
def test_banks_and_place_come_back(name, runs):
    trainer = Trainer(read_config(runs / name), runs / name)
    trainer.restore()
    state = torch.load(runs / name / "last.pt", weights_only=True)
    assert (trainer.epoch, trainer.batch, trainer.step) == (1, 2, 6)
    bank = trainer.objective.image_bank
    assert torch.equal(bank.ids, state["objective"]["image_bank.ids"])
    assert torch.equal(bank.rows, state["objective"]["image_bank.rows"])
    # 30 + 16 keys through 12 slots
    assert (len(bank), int(bank.ptr)) == (12, 46 % 12)
    assert trainer.optimizer.param_groups[0]["lr"] == state["optimizer"]["param_groups"][0]["lr"]


@pytest.mark.parametrize("name", NAMES)
def test_the_best_model_scores(name, runs, capfd):
    assert main(["eval", str(runs / name), "--part", "dev"]) == 0
    said = capfd.readouterr().out
    first = json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[0])
    assert f"{first['dev']['rsum']:7.1f}" in said
    _, model, vocabulary = load_best(runs / name)
    assert len(vocabulary) == len(json.loads((runs / name / "vocab.json").read_text())["word2idx"])
    assert model.features == 6
