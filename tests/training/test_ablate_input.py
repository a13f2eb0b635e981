"""What `sede ablate` is given and finds: flags, files of settings, records, folders in use."""

import json

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.jsonl import append
from sede_kernels.study.report import run_of
from sede_kernels.training.records import read

from .conftest import TINY, refused


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


BASE = ["ablate", "--data=tiny", *TINY, "--models=vse", "--variants=base", "--seeds=1"]
HUGE = "9" * 30
FLAGS = {
    "no-model": (["--models="], "there is no model ''"),
    "gap": (["--models=vse,,scan"], "there is no model ''"),
    "no-variant": (["--variants="], "there is no variant ''"),
    "search-variant": (["--search", "--variants=x"], "there is no variant 'x'"),
    "search-nothing": (["--search", "--variants=all"], "--search needs one of base, age, lsns"),
    "seeds": ([f"--seeds={HUGE}"], "--seeds must be at most 1000"),
    "few-seeds": (["--seeds=-1"], "--seeds must be 1 or more, got -1"),
    "jobs": ([f"--jobs={HUGE}"], "--jobs must be at most 1024"),
    "trials": (["--search", f"--trials={HUGE}"], "--trials must be at most 1000000"),
    "keep": (["--keep=-1"], "--keep must be 0 or more, got -1"),
    "device": (["--device=meta"], "device 'meta' cannot be used here"),
    "memory": (["--dim=999999999"], "GiB for weights and banks"),
    "texts": (["--text-embeddings=x"], "train_x.npy is missing"),
    "nan": (["--temperature=nan"], "temperature must be above 0, got nan"),
    "threshold": (
        ["--variants=age", "--erase-threshold=0.5"], "erase_rule 'mean' takes no erase_threshold",
    ),
    "hardest": (
        ["--search", "--variants=lsns", "--models=scan", "--bank=2", "--bank-hardest=4"],
        "bank_hardest must be at most the 2 slots",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_checked_before_anything_is_created(name, tiny, tmp_path, capfd):
    flags, words = FLAGS[name]
    assert words in refused(capfd, *BASE, *flags, "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


SETTINGS = {
    "list": ("[]", "holds something else than expected: a JSON table of models"),
    "number": ('{"vse": 3}', "holds something else than expected"),
    "part": ('{"vse": {"base": 3}}', "holds something else than expected"),
    "pairs": ('{"vse": {"base": [["lr", 0.1]]}}', "holds something else than expected"),
    "name": ('{"vse": {"bese": {}}}', "has a part 'bese': expected base, age, lsns, wil"),
    "setting": ('{"vse": {"base": {"lrr": 1}}}', "unknown setting 'lrr'; did you mean lr?"),
    "value": ('{"vse": {"base": {"lr": "x"}}}', "lr must be a number, got 'x'"),
    "bound": ('{"vse": {"base": {"lr": -1}}}', "lr must be above 0, got -1.0"),
    "cut": ('{"vse": ', "is damaged"),
    "deep": ("[" * 10**5, "is damaged"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_files_of_settings(name, tiny, tmp_path, capfd):
    content, words = SETTINGS[name]
    (tmp_path / "s.json").write_text(content)
    given = ["--settings", tmp_path / "s.json", "--out", tmp_path / "study"]
    assert words in refused(capfd, *BASE, *given)
    assert not (tmp_path / "study").exists()


def test_a_broken_data_set_stops_the_study_before_its_first_run(tiny, tmp_path, capfd):
    (tiny / "dev_ims.npy").write_bytes(b"junk")
    said = refused(capfd, *BASE, "--out", tmp_path / "study")
    assert "dev_ims.npy is not a whole .npy file" in said
    assert not (tmp_path / "study").exists()


def test_records_that_are_none_are_left_out_and_run_again(tiny, tmp_path, capfd):
    """Every line that is JSON but no record of a run gets a sentence; the table has the rest."""
    out = tmp_path / "study"
    words = [*BASE, "--out", str(out)]
    assert main(words) == 0
    path = out / "runs.jsonl"
    (whole,) = read(path)[0]
    epoch = whole["epochs"][0]
    wrong = [
        {**whole, "variant": "agee"}, {**whole, "config": 3}, {**whole, "epochs": []},
        {**whole, "config": {**whole["config"], "lr": "x"}}, {**whole, "epochs": [3]},
        {**whole, "epochs": {}}, {**whole, "epochs": [{**epoch, "dev": "x"}]},
        {**whole, "epochs": [{"dev": 1.0, "cpu_s": 1.0}]}, {**whole, "analysis": [1]},
        {**whole, "config": {**whole["config"], "news": 1}},
    ]  # fmt: skip
    path.unlink()
    for record in wrong:
        append(path, record)
    path.write_bytes(path.read_bytes() + b'"variant config epochs"\n' + b"[" * 10**5 + b"\n")
    capfd.readouterr()
    assert main(words) == 0
    said = capfd.readouterr()
    assert "0 of 1 runs are on file" in said.out
    numbers = {int(line.split(" line ")[1].split()[0]) for line in said.err.splitlines()}
    assert numbers == set(range(1, len(wrong) + 3))
    (again,) = read(path, ("variant", "config", "epochs"), check=run_of)[0]
    assert again["epochs"][0]["test"] == epoch["test"]
    assert main(words) == 0
    assert "1 of 1 runs are on file" in capfd.readouterr().out


def test_leftovers_of_a_killed_study_go(tiny, tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    for name in (".table.md.7.tmp", ".figure.svg.ab.tmp", ".notes.7.tmp"):
        (out / name).write_text("half")
    assert main([*BASE, "--out", str(out), "--keep=0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [".notes.7.tmp", "runs.jsonl", "table.md"]


def test_a_search_keeps_what_an_earlier_one_chose(tiny, tmp_path, capfd):
    """The file is read under the lock, and damage to it stops the search before it runs."""
    out = tmp_path / "study"
    words = ["ablate", "--data=tiny", *TINY, "--models=vse", "--search", "--trials=1"]
    assert main([*words, "--variants=base", "--out", str(out)]) == 0
    chosen = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text("[1]")
    said = refused(capfd, *words, "--variants=wil", "--out", out)
    assert "settings.json holds something else than expected" in said
    assert (out / "settings.json").read_text() == "[1]"
    (out / "settings.json").write_text(json.dumps(chosen))
    assert main([*words, "--variants=wil", "--out", str(out)]) == 0
    assert json.loads((out / "settings.json").read_text())["vse"]["base"] == chosen["vse"]["base"]
