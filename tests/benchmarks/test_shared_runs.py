"""What many processes send beside the cost model, and how long a run waits for its data."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import exchange, waiting


def test_two_processes_send_what_the_model_says() -> None:
    found = exchange.measured(2, rounds=1)
    assert found["bytes_of_the_model"] == {"queries": 132096, "maxima": 2048, "sums": 132608}
    assert found["equal"], found["bytes"]
    assert found["bank_bytes_a_rank"] == 8 << 20


def test_one_process_sends_nothing() -> None:
    assert set(exchange.measured(1, rounds=1)["bytes"].values()) == {0}


def test_waiting_is_measured_on_a_corpus_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folder", str(tmp_path), "--images=40", "--batch-size=20", "--workers", "0"]
    assert waiting.main(words) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index('{\n "model"') :])
    assert found["file_bytes"] == 128 + 40 * 36 * 2048 * 4
    assert found["disk_mb_per_s"] > 0
    (case,) = found["cases"]
    assert case["workers"] == 0 and 0 <= case["waiting_percent"] <= 100
    made = waiting.corpus(tmp_path / "cold_precomp", 40)
    before = made.stat()
    assert waiting.corpus(made.parent, 40).stat().st_mtime_ns == before.st_mtime_ns, "made once"
    assert waiting.corpus(made.parent, 7).stat().st_size == 128 + 7 * 36 * 2048 * 4, "as asked for"


@pytest.mark.parametrize(
    ("part", "flag"),
    [(exchange, "--rounds=0"), (waiting, "--images=0"), (waiting, "--workers=-1"),
     (waiting, "--batch-size=x"), (waiting, "--threads=0")],
)  # fmt: skip
def test_wrong_numbers_are_refused_before_anything_runs(
    part: ModuleType, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        part.main([flag])
    assert caught.value.code == 2
    assert "must be a whole number from" in capsys.readouterr().err.splitlines()[-1]
