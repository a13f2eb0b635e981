"""Where results and figures go if nobody says it."""

import tempfile

import pytest
import torch

from benchmarks import machine, plot, records, run
from tests.benchmarks.test_records import record

WORDS = ["--smoke", "--op=erase_mean", "--no-memory", "--allow-missing=cpu", "--budget=0.01"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home"


def test_a_smoke_run_leaves_the_results_of_the_machine_alone(home, tmp_path):
    assert run.main(WORDS) == 0
    assert not home.exists()
    (results,) = tmp_path.glob("sede-bench-*/*/*.jsonl")
    assert {r["op"] for r in records.read([results])[0]} == {"erase_mean"}
    assert (results.parent / "figures" / "summary.md").exists()


@pytest.mark.parametrize("named", [False, True], ids=["home", "out"])
def test_figures_beside_earlier_results_hold_them_too(named, home, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "draw", lambda found, _: drawn.extend(found) or [])
    small = run.cases_of("cpu", quick=True, smoke=True, op=["erase_mean"])
    monkeypatch.setattr(run, "cases_of", lambda *_, **__: small)
    device = machine.device_name(torch.device("cpu"))
    folder = tmp_path / "own" if named else home / machine.slug(device)
    records.append(folder / "earlier.jsonl", record(device=device, op="enqueue"))
    words = ["--device=cpu", "--quick", *WORDS[1:], *(["--out", str(folder)] if named else [])]
    assert run.main(words) == 0
    assert {r["op"] for r in drawn} == {"erase_mean"} | (set() if named else {"enqueue"})


def test_a_run_without_a_record_draws_nothing(home):
    assert run.main(["--device=cpu", "--quick", *WORDS[1:], "--seconds=1e-9"]) == 0
    assert not list(home.rglob("*.*"))
