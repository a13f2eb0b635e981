"""The example of many processes: resumed after a kill, and on another number of processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_distributed.py"
STEPS = 60

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def settings(out: Path) -> list[str]:
    return [str(EXAMPLE), "--out", str(out), "--steps", str(STEPS)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    fixed = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    return {**os.environ, **fixed, **{name: str(value) for name, value in more.items()}}


def losses(text: str) -> dict[int, list[str]]:
    """What was printed for each step, in order."""
    found: dict[int, list[str]] = {}
    for step, loss in re.findall(r"^step (\d+) loss (\S+)$", text, re.M):
        found.setdefault(int(step), []).append(loss)
    return found


def trained(out: Path, world: int) -> dict[int, list[str]]:
    """The curve of an unbroken run."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, *settings(out)],
            env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [rank.communicate(timeout=200) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    return losses(said[0][0])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[str]]]:
    """The folder and the curve of two processes."""
    out = tmp_path_factory.mktemp("unbroken")
    return out, trained(out, 2)


def test_it_learns(unbroken: tuple) -> None:
    curve = [float(value) for (value,) in unbroken[1].values()]
    assert len(curve) == STEPS
    assert sum(curve[-10:]) < 0.8 * sum(curve[:10])


def by_torchrun(
    out: Path, kill_at: int | None, world: int = 2, restarts: int = 0
) -> tuple[int, dict[int, list[str]]]:
    """Exit status and curve of some processes; one of them is killed when a step was printed."""
    command = ["-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    command += [f"--max-restarts={restarts}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    agent = subprocess.Popen(
        [sys.executable, *command, *settings(out)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert agent.stdout is not None
    workers: list[psutil.Process] = []

    def end() -> None:  # rather a failure than a test that never ends
        for process in [*psutil.Process(agent.pid).children(), agent]:
            process.kill()

    watch = threading.Timer(100, end)
    watch.start()
    printed = []
    for line in agent.stdout:
        printed.append(line)
        if line.startswith(f"step {kill_at} ") and not workers:
            workers = psutil.Process(agent.pid).children()
            workers[-1].send_signal(signal.SIGKILL)
    status = agent.wait(timeout=100)
    watch.cancel()
    return status, losses("".join(printed))


def test_a_killed_rank_costs_nothing_but_time(unbroken: tuple, tmp_path: Path) -> None:
    status, before = by_torchrun(tmp_path / "run", kill_at=25)
    assert status != 0 and 25 in before and STEPS - 1 not in before
    status, after = by_torchrun(tmp_path / "run", kill_at=None)
    assert status == 0
    assert min(after) in (10, 20), "it goes on from a checkpoint"
    expected = unbroken[1]
    assert sorted(set(before) | set(after)) == sorted(expected)
    for curve in (before, after):
        for step, values in curve.items():
            assert values == expected[step], step


def test_it_goes_on_with_one_process(unbroken: tuple, tmp_path: Path) -> None:
    """What two ranks saved after 20 steps: the same curve but for the order of sums."""
    out, expected = unbroken
    shutil.copytree(out / "step000020", tmp_path / "step000020")
    found = trained(tmp_path, 1)
    assert sorted(found) == list(range(20, STEPS))
    for step, (value,) in found.items():
        assert float(value) == pytest.approx(float(expected[step][0]), rel=1e-4), step


@pytest.mark.long
def test_torchrun_starts_a_killed_rank_again(unbroken: tuple, tmp_path: Path) -> None:
    """One rank, so that none waits for another in gloo's own connect."""
    shutil.copytree(unbroken[0] / "step000020", tmp_path / "step000020")
    status, found = by_torchrun(tmp_path, kill_at=34, world=1, restarts=1)
    assert status == 0 and sorted(found) == list(range(20, STEPS))
    twice = [step for step, values in found.items() if len(values) == 2]
    assert min(twice) == 30, "the second life goes on from the last checkpoint"
    for step, values in found.items():
        assert len(set(values)) == 1, step
        assert float(values[0]) == pytest.approx(float(unbroken[1][step][0]), rel=1e-4), step
