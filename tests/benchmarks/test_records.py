"""Results files: atomic appends, schema, torn lines, comparison."""

import json
import multiprocessing
from pathlib import Path

import pytest

from benchmarks import compare, records


def record(**changes):
    """A complete, valid record."""
    base = {
        "schema": 1,
        "run": "r1",
        "utc": "2026-01-02T03:04:05Z",
        "op": "info_nce",
        "implementation": "sede cpu",
        "kind": "ours",
        "mode": "forward",
        "dtype": "fp32",
        "sizes": {"B": 2, "K": 8, "D": 4},
        "status": "ok",
        "reason": None,
        "median_ms": 1.0,
        "p20_ms": 0.98,
        "p80_ms": 1.02,
        "repeats": 5,
        "input_sets": 2,
        "seed": 1,
        "error": 1e-7,
        "errors": {"loss": 1e-7},
        "budgets": {"loss": 2e-6},
        "passed": True,
        "flops_formula": "2 B K D",
        "flops": 128.0,
        "bytes_formula": "bank once",
        "bytes": 128.0,
        "matrix_gflops": 100.0,
        "matrix_rate_of": "loop",
        "copy_gbs": 10.0,
        "limit_ms": 0.5,
        "fraction_of_limit": 0.5,
        "extra_peak_mb": 0.1,
        "memory_from": "own process, VmHWM",
        "device": "some cpu",
        "driver": None,
        "cpu": "some cpu",
        "threads": 2,
        "load_average": 0.1,
        "python": "3.11",
        "torch": "2",
        "triton": None,
        "sede_kernels": "0",
        "peer_version": None,
        "git": "abc",
    }
    return base | changes


def test_the_example_names_every_field_of_the_schema():
    assert record().keys() == records.FIELDS.keys()


def test_append_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    written = [record(), record(implementation="eager", kind="eager")]
    for one in written:
        records.append(path, one)
    assert records.read([path]) == (written, [])


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        pytest.param({"op": 3}, "op must be str", id="type"),
        pytest.param({"status": "fine"}, "status must be one of", id="status"),
        pytest.param({"passed": False}, "needs a passed check", id="time-of-failed-check"),
        pytest.param({"status": "out of memory"}, "needs a passed check", id="time-without-ok"),
        pytest.param({"median_ms": None}, "needs a passed check", id="ok-without-time"),
        pytest.param({"schema": 0}, "schema must be 1", id="schema"),
        pytest.param({"surplus": 1}, "unknown fields surplus", id="unknown"),
        pytest.param({"repeats": True}, "repeats must be int", id="bool-for-int"),
    ],
)
def test_bad_records_are_refused_with_a_clause(tmp_path, changes, clause):
    with pytest.raises(ValueError, match=clause):
        records.append(tmp_path / "a.jsonl", record(**changes))
    assert not (tmp_path / "a.jsonl").exists()


def test_out_of_memory_is_a_record(tmp_path):
    lost = record(
        status="out of memory",
        reason="killed",
        median_ms=None,
        p20_ms=None,
        p80_ms=None,
        passed=None,
        error=None,
        fraction_of_limit=None,
    )
    records.append(tmp_path / "a.jsonl", lost)
    assert records.read([tmp_path / "a.jsonl"])[0] == [lost]


def test_bad_lines_are_reported_with_their_place_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    records.append(path, record())
    with path.open("a") as handle:
        handle.write("not json\n")
        handle.write(json.dumps({"schema": 1}) + "\n")
        handle.write(json.dumps(record())[:50])  # a crash in the middle of a line
    found, problems = records.read([path])
    assert len(found) == 1
    assert [p.line for p in problems] == [2, 3, 4]
    assert "not JSON" in str(problems[0])
    assert "lacks" in str(problems[1])
    assert "cut off" in str(problems[2])


def test_appending_after_a_torn_line_keeps_both_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record())[:30])
    records.append(path, record())
    found, problems = records.read([path])
    assert (len(found), [p.line for p in problems]) == (1, [1])


def _append_many(path: Path, name: str) -> None:
    for _ in range(50):
        records.append(path, record(implementation=name))


def test_appends_of_two_processes_do_not_mix(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, name)) for name in ("x", "y")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found, problems = records.read([path])
    assert (len(found), problems) == (100, [])


def test_no_results_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        records.files_in(tmp_path)


def test_latest_prefers_the_last_and_never_an_absence():
    old = record(run="old", utc="2026-01-02T03:04:04Z")
    new = record(run="new", median_ms=2.0)
    gone = record(run="gone", status="absent", median_ms=None, passed=None)
    (kept,) = records.latest([new, old, gone]).values()
    assert kept["run"] == "new"


def _runs(*kinds_of_runs):
    """One case, run by run: the milliseconds of each implementation."""
    return [
        record(
            run=str(day),
            utc=f"2026-01-0{day}T00:00:00Z",
            implementation=name,
            kind="ours" if name.startswith("sede") else "peer",
            median_ms=ms,
            threads=day,
        )
        for day, times in enumerate(kinds_of_runs, 1)
        for name, ms in times.items()
    ]


@pytest.mark.parametrize(
    ("runs", "kept"),
    [
        ([{"sede cpu": 1.0, "eager": 5.0, "lightly": 9.0}, {"sede cpu": 2.0, "eager": 7.0}], "2"),
        ([{"sede cpu": 1.0, "eager": 5.0}, {"sede cpu": 2.0}], "1"),
        ([{"sede cpu": 1.0}, {"sede cpu": 2.0}, {"eager": 3.0}], "3"),
    ],
    ids=["both-compare", "only-ours-later", "none-compares"],
)
def test_what_stands_side_by_side_is_of_one_run(runs, kept):
    """Of one process, so that the variants took turns, and of one number of threads."""
    found = _runs(*runs)
    chosen = records.latest(reversed(found)).values()
    expected = {r["implementation"]: r["median_ms"] for r in found if r["run"] == kept}
    assert {r["implementation"]: r["median_ms"] for r in chosen} == expected
    assert {r["threads"] for r in chosen} == {int(kept)}


def test_a_later_wrong_result_is_not_hidden_by_an_earlier_right_one():
    old, new = (
        _runs({"sede cpu": 1.0, "eager": 5.0}, {"eager": 5.0})[:2],
        record(run="2", utc="2026-01-02T00:00:00Z", status="wrong", median_ms=None, passed=False),
    )
    eager = record(run="2", utc="2026-01-02T00:00:00Z", implementation="eager", kind="eager")
    statuses = {r["status"] for r in records.latest([*old, new, eager]).values()}
    assert statuses == {"ok", "wrong"}


def test_threads_are_counted_in_words():
    one, two = record(threads=1), record(threads=2)
    words = [records.threads_of(found) for found in ([], [one], [two, two], [two, one])]
    assert words == ["", "1 thread", "2 threads", "1 or 2 threads"]


def _write(path: Path, *found):
    for one in found:
        records.append(path, one)
    return path


@pytest.mark.parametrize(
    ("head", "code", "word"),
    [
        pytest.param({"median_ms": 1.2, "p20_ms": 1.1, "p80_ms": 1.3}, 1, "SLOWER", id="slower"),
        pytest.param({"median_ms": 1.04, "p20_ms": 1.03, "p80_ms": 1.1}, 0, "same", id="within"),
        pytest.param({"median_ms": 1.2, "p20_ms": 1.0, "p80_ms": 1.4}, 0, "same", id="overlap"),
        pytest.param({"median_ms": 0.5, "p20_ms": 0.4, "p80_ms": 0.6}, 0, "faster", id="faster"),
        pytest.param(
            {"status": "wrong", "median_ms": None, "passed": False}, 1, "wrong", id="wrong"
        ),
    ],
)
def test_compare(tmp_path, capsys, head, code, word):
    base = _write(tmp_path / "base.jsonl", record())
    new = _write(tmp_path / "head.jsonl", record(**head))
    assert compare.main([str(base), str(new), "--fail-above", "5%"]) == code
    assert word in capsys.readouterr().out


def test_compare_does_not_fail_on_a_slower_peer(tmp_path):
    peer = {"implementation": "eager", "kind": "eager"}
    base = _write(tmp_path / "base.jsonl", record(**peer))
    slow = record(**peer, median_ms=9.0, p20_ms=8.0, p80_ms=9.5)
    assert compare.main([str(base), str(_write(tmp_path / "head.jsonl", slow))]) == 0


def test_compare_refuses_two_machines(tmp_path):
    base = _write(tmp_path / "base.jsonl", record())
    head = _write(tmp_path / "head.jsonl", record(device="another"))
    with pytest.raises(ValueError, match="different devices"):
        compare.main([str(base), str(head)])


def test_compare_refuses_two_numbers_of_threads(tmp_path):
    base = _write(tmp_path / "base.jsonl", record())
    head = _write(tmp_path / "head.jsonl", record(threads=1))
    said = "info_nce forward fp32 B=2 K=8 D=4 was measured on 2 and on 1 threads: compare runs of"
    with pytest.raises(ValueError, match=said):
        compare.main([str(base), str(head)])


def test_compare_says_what_was_measured(tmp_path, capsys):
    base = _write(tmp_path / "base.jsonl", record())
    new = {"torch": "3", "git": "def", "utc": "2026-01-04T00:00:00Z"}
    head = _write(tmp_path / "head.jsonl", record(**new))
    assert compare.main([str(base), str(head)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "base: sede-kernels abc; torch 2; threads 2; 2026-01-02",
        "head: sede-kernels def; torch 3; threads 2; 2026-01-04",
    ]
