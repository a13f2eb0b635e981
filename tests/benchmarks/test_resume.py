"""A benchmark that ends before its time: what is kept, and how another process goes on."""

import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import records, registry, resume, run, warm
from benchmarks.case import FORWARD, Case, Variant
from benchmarks.measure import CallError, interleave
from benchmarks.operations.ring import Enqueue

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIZES = {"N": 3, "K": 40, "D": 8}
CASES = [Case("enqueue", FORWARD, dtype, SIZES) for dtype in ("fp32", "bf16")]


@pytest.fixture
def tiny(monkeypatch):
    """Two small cases of ring writes, and what their variants are made of."""
    found = Enqueue().variants(CASES[0])
    plain = [variant for variant in found if variant.name in ("sede torch", "eager")]
    monkeypatch.setitem(run.GRIDS, ("cpu", True), lambda: list(CASES))
    monkeypatch.setattr(Enqueue, "variants", lambda self, case: list(plain))
    return plain


def _words(tmp_path, *more):
    out, place = tmp_path / "gpu.jsonl", tmp_path / "at.json"
    return [
        "--smoke", "--device", "cpu", "--no-figures", "--no-memory", "--budget", "0.01",
        "--allow-missing", "cpu", "--out", str(out), "--resume", str(place), *more,
    ]  # fmt: skip


def _found(tmp_path):
    read, problems = records.read([tmp_path / "gpu.jsonl"])
    assert not problems
    return [(r["dtype"], r["implementation"], r["status"]) for r in read]


def test_a_call_that_fails_while_it_is_timed_says_whose_it_was():
    def broken(turn):
        raise RuntimeError("no more")

    with pytest.raises(CallError) as caught:
        interleave({"well": lambda turn: {}, "ill": broken}, CPU, 0.01)
    assert caught.value.name == "ill" and str(caught.value.reason) == "no more"


def test_a_variant_that_fails_on_another_input_set_leaves_the_others_timed(tmp_path, tiny):
    def build(case, sets):
        good = tiny[0].build(case, sets)

        def call(turn):
            if turn:
                raise RuntimeError("an illegal memory access was encountered")
            return good(turn)

        return call

    tiny.append(Variant("ill", "ours", build))
    assert run.main(_words(tmp_path)) == 1
    found = _found(tmp_path)
    assert [x for x in found if x[1] == "ill"] == [
        ("fp32", "ill", "error"),
        ("bf16", "ill", "error"),
    ]
    assert all(status == "ok" for _, name, status in found if name != "ill")
    assert not (tmp_path / "at.json").exists(), "the run went to its end"


def test_a_lost_gpu_ends_the_process_and_the_next_one_leaves_out_what_lost_it(
    tmp_path, tiny, monkeypatch
):
    lost = [False]

    def build(case, sets):
        lost[0] = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tiny.insert(0, Variant("ill", "ours", build))
    monkeypatch.setattr("benchmarks.runner.is_lost", lambda device: lost[0])
    assert run.main(_words(tmp_path)) == 75
    title, name = json.loads((tmp_path / "at.json").read_text())[1:]
    assert (title, name) == (CASES[0].title, "ill")
    lost[0] = False
    assert run.main(_words(tmp_path)) == 75, "it is lost again, in the next case"
    lost[0] = False
    assert run.main(_words(tmp_path)) == 1, "a variant of ours has failed"
    assert sorted(_found(tmp_path)) == sorted(
        (dtype, name, status)
        for dtype in ("fp32", "bf16")
        for name, status in (("ill", "error"), ("sede torch", "ok"), ("eager", "ok"))
    )
    assert len({r["run"] for r in records.read([tmp_path / "gpu.jsonl"])[0]}) == 1
    assert not (tmp_path / "at.json").exists()


def test_what_was_measured_is_not_measured_again(tmp_path, tiny):
    assert run.main(_words(tmp_path)) == 0
    read = records.read([tmp_path / "gpu.jsonl"])[0]
    (tmp_path / "at.json").write_text(json.dumps([read[0]["run"], "", ""]))
    assert run.main(_words(tmp_path)) == 0
    assert len(_found(tmp_path)) == len(read) == 4


def test_inputs_that_fail_leave_the_next_case_to_be_measured(tmp_path, tiny, monkeypatch, capsys):
    draw = Enqueue.draw

    def draws(self, case, device, generator):
        if case.dtype == "fp32":
            raise RuntimeError("no such number")
        return draw(self, case, device, generator)

    monkeypatch.setattr(Enqueue, "draw", draws)
    assert run.main(_words(tmp_path)) == 1
    assert {dtype for dtype, _, _ in _found(tmp_path)} == {"bf16"}
    assert "no such number" in capsys.readouterr().out


def test_a_process_that_hangs_ends_and_says_where(tmp_path):
    place = tmp_path / "at.json"
    script = (
        "import time\nfrom pathlib import Path\nfrom benchmarks.resume import Progress\n"
        "from tests.benchmarks.test_resume import CASES\n"
        f"Progress(Path('x.jsonl'), 'r', Path({str(place)!r}), 0.2).at(CASES[0], 'ill')\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1 and "Timeout" in done.stderr
    assert json.loads(place.read_text()) == ["r", CASES[0].title, "ill"]
    assert resume.Progress(tmp_path / "x.jsonl", "other", place).broken == (CASES[0].title, "ill")


def test_the_warm_up_calls_what_compiles(monkeypatch, capsys):
    monkeypatch.setitem(registry.GRIDS, ("cpu", True), lambda: list(CASES))
    monkeypatch.setattr(warm, "_COMPILES", ("sede torch",))
    found = warm.calls(run.cases_of("cpu", quick=True, smoke=False, op=None), CPU)
    assert found == [(0, "sede torch"), (1, "sede torch")]
    waiting = queue.Queue()
    for item in [*found, (0, "no such variant"), None]:
        waiting.put(item)
    threads = torch.get_num_threads()
    options = {"device": "cpu", "quick": True, "smoke": False, "op": None, "patience": 60.0}
    try:
        warm._work(options, waiting)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out.splitlines()
    assert [line.endswith(": ok") for line in said] == [True, True, False]
