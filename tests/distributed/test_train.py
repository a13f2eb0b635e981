"""``sede train`` on several processes: one curve, one writer, one sentence where it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.distributed import runs
from tests.distributed.ranks import run_ranks
from tests.distributed.test_example import environment, free_port
from tests.training.conftest import write_family_folder
from tests.training.test_resume import same

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data, and the runs of one process: whole ones, and one that was stopped."""
    folder = tmp_path_factory.mktemp("runs")
    write_family_folder(folder / "data" / "tiny_precomp", regions=3, width=6)
    threads, home = torch.get_num_threads(), os.environ.get("SEDE_DATA")
    yield folder
    torch.set_num_threads(threads)
    if home is None:
        os.environ.pop("SEDE_DATA", None)
    else:
        os.environ["SEDE_DATA"] = home


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    found = runs.curves(0, folder)
    flags = [*runs.COMMON, "--dropout=0", *runs.RUNS["scan"]]
    found["one"] = runs.trained(folder / "one", flags, stop_on=0)
    return found


@pytest.fixture(scope="module")
def two(folder: Path, alone: dict[str, Any]) -> list[dict[str, Any]]:
    """What two processes found."""
    works = {
        "curves": runs.curves,
        "stopped": runs.stopped,
        "exchange": runs.exchange,
        "lost": runs.lost,
        "evaluated": runs.evaluated,
    }
    return run_ranks(works, 2, folder)


def check_curves(folder: Path, alone: dict[str, Any], ranks: list[Any], name: str) -> None:
    status, expected = alone[name]
    assert status == 0 and len(expected) == 10
    for found in ranks:
        assert found["curves"][name][0] == 0
        assert found["curves"][name][1] == pytest.approx(expected, rel=1e-5)
    one, many = folder / f"{name}-1", folder / f"{name}-{len(ranks)}"
    assert runs.files(many) == runs.files(one)
    for ours, theirs in zip(runs.log(many), runs.log(one), strict=True):
        assert ours["dev"] == theirs["dev"] and ours["step"] == theirs["step"]
    banks = [runs.state_of(out)["objective"] for out in (one, many)]
    for key in banks[0]:
        if key.endswith("ids"):  # the same rows are stored, in another order
            assert torch.equal(*(bank[key].sort().values for bank in banks)), key


@pytest.mark.parametrize("name", runs.RUNS)
def test_two_ranks_train_as_one(folder: Path, alone: dict, two: list, name: str) -> None:
    check_curves(folder, alone, two, name)


@pytest.mark.long
@pytest.mark.parametrize("name", runs.RUNS)
def test_four_ranks_train_as_one(folder: Path, alone: dict, four: list, name: str) -> None:
    check_curves(folder, alone, four, name)


@pytest.fixture(scope="module")
def four(folder: Path, alone: dict[str, Any]) -> list[dict[str, Any]]:
    """What four processes found."""
    return run_ranks({"curves": runs.curves}, 4, folder)


@pytest.mark.parametrize("name", ["vse", "scan"])
def test_two_ranks_evaluate_as_one(folder: Path, alone: dict, two: list, name: str) -> None:
    status, said = two[0]["evaluated"][name]
    assert status == 0
    figures = json.loads(said)
    (title,) = set(figures) - {"chance"}
    assert figures[title] == json.loads((folder / f"{name}-1" / "test.json").read_text())["test"]


def test_all_stop_after_one_step_and_resume_bit_for_bit(folder: Path, two: list) -> None:
    """Only the last rank was told to stop; dropout is on."""
    for found in (each["stopped"] for each in two):
        assert found["whole"][0] == 0
        assert found["first"] == (130, found["whole"][1][: runs.STOP])
        assert found["second"] == (0, found["whole"][1][runs.STOP :])
    states = [runs.state_of(folder / name) for name in ("whole", "stopped")]
    assert same(*states)


def test_another_number_of_ranks_goes_on(folder: Path, alone: dict, two: list) -> None:
    """Two ranks go on from what one saved, and one from what two saved."""
    expected = alone["scan"][1][runs.STOP :]
    for each in two:
        status, losses = each["stopped"]["from one"]
        assert status == 0 and losses == pytest.approx(expected, rel=1e-5)
    state = runs.state_of(folder / "kept")
    status, losses = runs.trained(folder / "kept", [])
    assert status == 0 and len(losses) == len(expected)
    assert all(torch.tensor(losses).isfinite())
    again = runs.state_of(folder / "kept")["objective"]
    assert again["image_bank.ids"].shape == state["objective"]["image_bank.ids"].shape
    assert "image_bank.stamps" not in again and int(again["image_bank.count"]) == 16


@pytest.mark.parametrize(("kind", "sums"), [("vse", 1), ("scan", 2)])
def test_negatives_of_all_ranks_learn_under_no_sync(two: list, kind: str, sums: int) -> None:
    """Gradients of two micro batches are those of one process; sums a backward pass."""
    for each in two:
        gap, counts = each["exchange"][kind]
        assert gap < 1e-12
        assert counts["reduce_scatter"] == 2 * sums


def test_a_loss_that_is_no_number_ends_all(folder: Path, two: list) -> None:
    assert [each["lost"] for each in two] == ["1", "1"]
    assert runs.log(folder / "lost") == []


@pytest.mark.long
def test_a_rank_that_skips_a_step_is_missed(tmp_path: Path) -> None:
    found = run_ranks({"absent": runs.absent}, 2, tmp_path, seconds=2)
    assert found[0]["absent"].startswith("UserError: rank 0 of 2 lost another rank, which died")
    assert found[1]["absent"] == "skipped"


@pytest.mark.long
def test_an_error_on_one_rank_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    """The second rank does not find the data."""
    port, out = free_port(), tmp_path / "run"
    processes = []
    for rank, home in enumerate((folder / "data", tmp_path / "nowhere")):
        command = [sys.executable, "-m", "sede_kernels.cli", "train", *runs.COMMON, "--out", out]
        more = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "SEDE_DATA": home}
        processes.append(
            subprocess.Popen(
                [str(word) for word in command],
                env=environment(LOCAL_RANK=rank, **more),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    sentences = [line for _, err in said for line in err.splitlines() if line.startswith("sede:")]
    assert len(sentences) == 1 and sentences[0].startswith("sede: rank 1 of 2: ")
    assert "'tiny'" in sentences[0] and not out.exists()
    assert "Traceback" not in "".join(err for _, err in said)


def by_torchrun(home: Path, words: list[str], log: Path | None = None, seconds: float = 100) -> int:
    """Exit status of two processes; once ``log`` is there, one of them is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "sede_kernels", "train"]
    agent = subprocess.Popen(
        [*command, *words],
        env=environment(SEDE_DATA=home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 100
        while log is not None and time.monotonic() < deadline and agent.poll() is None:
            if log.exists():
                psutil.Process(agent.pid).children()[-1].send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        return agent.wait(timeout=seconds)
    finally:
        for process in (
            [*psutil.Process(agent.pid).children(), agent] if agent.poll() is None else ()
        ):
            process.kill()


@pytest.mark.long
def test_a_killed_rank_costs_nothing_but_time(folder: Path, tmp_path: Path) -> None:
    flags = [*runs.COMMON, *runs.RUNS["banks"], "--epochs=20", "--checkpoint-every=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    home = folder / "data"
    assert by_torchrun(home, [*flags, "--out", str(whole)]) == 0
    assert by_torchrun(home, [*flags, "--out", str(killed)], killed / "metrics.jsonl") != 0
    assert len(runs.log(killed)) < 20
    assert by_torchrun(home, ["--resume", str(killed)]) == 0
    assert same(*(runs.state_of(out) for out in (whole, killed)))


@pytest.mark.long
def test_two_ranks_compile_with_inductor(folder: Path, tmp_path: Path) -> None:
    """The real compiler and the native kernels, under torchrun: the losses of an eager run."""
    flags = [*runs.COMMON, *runs.RUNS["banks"], "--dropout=0", "--batch-size=10", "--epochs=1"]
    logs = []
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        out = tmp_path / name
        words = [*flags, *more, "--out", str(out)]
        assert by_torchrun(folder / "data", words, seconds=380) == 0
        logs.append(runs.log(out))
    (eager,), (compiled,) = logs
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-5)
    assert compiled["step"] == eager["step"] and compiled["dev"] == eager["dev"]
