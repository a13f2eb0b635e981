"""One process a folder: the second gets one sentence, and a kill leaves nothing locked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sede_kernels.cli import main
from sede_kernels.training import lock
from sede_kernels.training.files import UserError
from sede_kernels.training.lock import hold

from .conftest import LIMIT, TINY, read_log, refused

HOLDER = """
import sys, time
from pathlib import Path
from sede_kernels.training.lock import hold
with hold(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_goes_with_the_process(tmp_path):
    folder = tmp_path / "a" / "b"
    process = holder(folder)
    words = rf"in use by `a test` \(process {process.pid} on "
    with pytest.raises(UserError, match=words) as told, hold(folder, "me"):
        pass
    assert str(folder) in str(told.value) and "\n" not in str(told.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (folder / ".lock").exists()
    with hold(folder, "me"):
        assert f"`me` (process {os.getpid()}" in (folder / ".lock").read_text()
    assert not (folder / ".lock").exists()


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with hold(tmp_path / "a" / "b", "me"):
        pass
    assert not (tmp_path / "a").exists()
    with hold(tmp_path / "a" / "b", "me"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert (tmp_path / "a" / "b" / "kept").exists()


def test_waiting_ends_when_the_other_lets_go(tmp_path):
    process = holder(tmp_path)
    process.kill()
    with hold(tmp_path, "me", wait_s=20):  # the system needs a moment to end it
        pass
    process.wait()
    process.stdout.close()


def test_a_lock_file_that_was_replaced_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Its holder removed it between our open and our lock, and a third process made a new one."""
    path, real, times = tmp_path / ".lock", lock._try_lock, []

    def replaced(descriptor, folder):
        times.append(1)
        if len(times) == 1:
            path.unlink()
            path.touch()
        return real(descriptor, folder)

    monkeypatch.setattr(lock, "_try_lock", replaced)
    with hold(tmp_path, "me"):
        assert len(times) == 2
        assert "me" in path.read_text()


def test_a_planted_link_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"), hold(tmp_path / "run", "me"):
        pass
    assert target.read_text() == "mine"


def test_two_trainings_in_one_folder(tiny, tmp_path, environment_of, capfd):
    """A second `train` or `--resume` is refused; after SIGKILL the run goes on, a line an epoch."""
    out = tmp_path / "run"
    first = ["train", "--data=tiny", *TINY, "--epochs=100000", "--out", str(out)]
    command = [sys.executable, "-m", "sede_kernels.cli", *first]
    process = subprocess.Popen(
        command, env=environment_of, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out / "best.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    words = f"{out} is in use by `sede train` (process {process.pid} on "
    assert words in refused(capfd, "train", "--data=tiny", *TINY, "--seed=2", "--out", out)
    assert words in refused(capfd, "train", "--resume", out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    config = json.loads((out / "config.json").read_text())
    assert config["seed"] == 0
    lines = len((out / "metrics.jsonl").read_text().splitlines())
    (out / "config.json").write_text(json.dumps({**config, "epochs": lines + 2}))
    assert main(["train", "--resume", str(out)]) == 0
    assert [line["epoch"] for line in read_log(out)] == list(range(lines + 2))
    assert not list(out.glob(".*"))


@pytest.fixture
def environment_of(tiny) -> dict[str, str]:
    import sede_kernels

    package = str(Path(sede_kernels.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}


@pytest.mark.parametrize("more", [[], ["--search"]], ids=["grid", "search"])
def test_two_ablations_in_one_folder(more, tiny, tmp_path, capfd):
    out = tmp_path / "study"
    words = ["ablate", "--data=tiny", *TINY, "--models=vse", "--out", out, *more]
    with hold(out, "sede ablate"):
        assert f"{out} is in use by `sede ablate`" in refused(capfd, *words)
    assert not out.exists()


def test_two_demos_in_one_folder(icons, tmp_path, capfd):
    with hold(tmp_path / "demo", "sede demo"):
        said = refused(capfd, "demo", "--limit", LIMIT, "--out", tmp_path / "demo")
    assert "is in use by `sede demo`" in said


def test_two_preparations_of_one_set(icons_home, tmp_path, capfd):
    with hold(tmp_path / "cache" / "icons", "sede prepare icons"):
        said = refused(capfd, "prepare", "icons", "--limit=40", "--out", tmp_path)
        assert "is in use by `sede prepare icons`" in said
    assert not list(tmp_path.iterdir())
    with hold(icons_home / "cache" / "icons", "sede prepare icons"):
        # What is there already needs no lock.
        assert main(["prepare", "icons", f"--limit={LIMIT}", "--out", str(icons_home)]) == 0
