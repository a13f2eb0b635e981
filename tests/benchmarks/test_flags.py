"""Every flag of ``sede bench`` with values that cannot be: one sentence, nothing is measured."""

import json

import numpy as np
import pytest

from benchmarks import measured, modules, run
from benchmarks.case import BOTH, Case
from benchmarks.operations.steps import write_part

HUGE = "9" * 30
PLACES = {"--out=/proc/a/b": "cannot be written", "--out=FILE/b": "cannot be written"}


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr(measured, "header", refuse)
    monkeypatch.setattr(modules, "measure", refuse)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags") / "set_precomp"
    folder.mkdir()
    for part in ("train", "dev", "test"):
        case = Case("train_step_bfan", BOTH, "fp32", {"B": 20, "R": 6, "F": 5})
        write_part(folder, part, case, np.random.default_rng(3))
    return folder


def refused(capfd, *words: str) -> str:
    """The last line that the command says; it ends with 2, in one sentence."""
    try:
        code = run.main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("sede bench")]
    assert code == 2, said
    assert len(lines) == 1 and not said.out, said
    return lines[0]


MODULES = {
    **{f"--models={name}": "names of vse, scan, bfan, vsrn, got" for name in ("", "vs", "vse,")},
    **{f"--batches={n}": "from 1 to 2147483647, got" for n in ("0", "-3", "x", "4,", "4.5", HUGE)},
    **{f"--steps={n}": "from 1 to 1000000, got" for n in ("0", "-1", "x", HUGE)},
    **{f"--threads={n}": "from 1 to 1024, got" for n in ("0", "-1", "1025", HUGE)},
    **{f"--dim={n}": "from 0 to 2147483647, got" for n in ("-1", HUGE)},
    "--dim=2147483647": "GiB for weights and banks",
    **{f"--device={name}": "cannot be used here" for name in ("", "gpu", "meta", "cuda:99")},
    "--data=nowhere": "there is no data set 'nowhere'",
    "--allow-missing=gpu": "--allow-missing must be one of",
    **PLACES,
    "--out=/": "--out must be a file, got the folder /",
}  # fmt: skip


@pytest.mark.parametrize("flag", MODULES)
def test_modules_refuse_before_anything_runs(flag, nothing_runs, data, tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    given = flag.replace("FILE", str(tmp_path / "file"))
    out = tmp_path / "new" / "modules.json"
    said = refused(capfd, "modules", f"--data={data}", "--models=vse", f"--out={out}", given)
    assert MODULES[flag] in said
    assert not out.parent.exists()


BENCH = {
    **{f"--{name}={n}": "a number of seconds above 0, got"
       for name in ("budget", "seconds") for n in ("0", "-1", "nan", "inf", "x")},
    **{f"--seed={n}": "from 0 to 9223372036854775807, got" for n in ("-1", "x", HUGE)},
    **{f"--threads={n}": "from 1 to 1024, got" for n in ("0", "-1", HUGE)},
    "--impl=nobody": "--impl must be one of",
    "--device=gpu": "--device must be auto, cpu or cuda",
    "--allow-missing=gpu": "--allow-missing must be one of",
    **PLACES,
    "--figures=/proc/xx": "cannot be written",
    "--figures=FILE": "--figures must be a folder, got the file",
}  # fmt: skip


@pytest.mark.parametrize("flag", BENCH)
def test_bench_refuses_before_anything_runs(flag, nothing_runs, tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    given = flag.replace("FILE", str(tmp_path / "file"))
    out = tmp_path / "new" / "bench.jsonl"
    said = refused(capfd, "--smoke", "--op=erase_mean", f"--out={out}", given)
    assert BENCH[flag] in said
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table", "--lines=0"], "from 1 to 2147483647, got '0'"),
        (["compare", "RECORDS", "RECORDS", "--allow-missing=gpu"], "--allow-missing must be one"),
        (["compare", "RECORDS", "RECORDS", "--fail-above=x"], "must be like 5% or 0.05"),
        (["plot", "RECORDS", "--out=/proc/x"], "--out: /proc/x cannot be written"),
        (
            ["ahead", "RECORDS", "--order=/proc/x", "--device=d"],
            "--order: /proc/x cannot be written",
        ),
        *(
            (
                [part, *["RECORDS"] * count],
                "there is no record of `sede bench` in it, expected JSON",
            )
            for part, count in (
                ("compare", 2),
                ("table", 1),
                ("plot", 1),
                ("targets", 1),
                ("ahead", 1),
            )
        ),
        (["table", "nowhere"], "no results (*.jsonl) in nowhere; run `sede bench --quick`"),
        (
            ["tabel"],
            "there is no `sede bench tabel`: choose from compare, plot, table, targets, mod",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_readers_of_records_refuse_too(words, said, tmp_path, capfd):
    (tmp_path / "one.jsonl").write_text(json.dumps({}) + "\n")
    assert said in refused(capfd, *[word.replace("RECORDS", str(tmp_path)) for word in words])
