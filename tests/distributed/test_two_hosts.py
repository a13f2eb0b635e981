"""``sede train`` on two hosts: network namespaces that share nothing but a cable and a disk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed import runs
from tests.distributed.test_example import environment
from tests.distributed.test_train import by_torchrun
from tests.training.conftest import write_family_folder
from tests.training.test_resume import same

pytestmark = [pytest.mark.distributed, pytest.mark.long]

ADDRESSES = ("10.231.7.1", "10.231.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces; each has its own loopback and one end of the cable."""
    names = [f"sede{os.getpid()}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip of iproute2")
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def started(hosts: list[str], home: Path, words: list[str]) -> list[subprocess.Popen[bytes]]:
    """One torchrun a host, each with one process."""
    agents = []
    for node, (name, address) in enumerate(zip(hosts, ADDRESSES, strict=True)):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29417"]
        command += [f"--rdzv-conf=is_host={1 - node}", f"--local-addr={address}"]
        command += ["-m", "sede_kernels", "train", *words]
        fixed = environment(SEDE_DATA=home, GLOO_SOCKET_IFNAME=name, SEDE_RANK_TIMEOUT=60)
        del fixed["MASTER_ADDR"]
        quiet = subprocess.DEVNULL
        agents.append(subprocess.Popen(command, env=fixed, stdout=quiet, stderr=quiet))
    return agents


def end(agent: subprocess.Popen[bytes]) -> None:
    """A host that loses its power."""
    if agent.poll() is not None:
        return
    for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
        process.send_signal(signal.SIGKILL)


def status(agents: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [agent.wait(timeout=100) for agent in agents]
    finally:
        for agent in agents:
            end(agent)


def test_two_hosts_train_as_one_and_survive_the_loss_of_one(
    hosts: list[str], tmp_path: Path
) -> None:
    home = tmp_path / "data"
    write_family_folder(home / "tiny_precomp", regions=3, width=6)
    flags = [*runs.COMMON, *runs.RUNS["banks"], "--epochs=20", "--checkpoint-every=3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert by_torchrun(home, [*flags, "--out", str(one)]) == 0
    agents = started(hosts, home, [*flags, "--out", str(two)])
    deadline = time.monotonic() + 100
    while not (two / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    end(agents[1])
    assert all(status(agents))
    assert 0 < len(runs.log(two)) < 20
    assert status(started(hosts, home, ["--resume", str(two)])) == [0, 0]
    assert same(*(runs.state_of(out) for out in (one, two)))
