"""``sede bench`` measures the installed package, wherever it is started."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sede_kernels.backends.cpu import _native
from tests.install.conftest import Environment, copy_sources, run

WORDS = ["--smoke", "--op", "hardest", "--no-figures", "--budget", "0.01"]


@pytest.fixture(scope="module")
def pure(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("pure") / "env", pure_wheel)


@pytest.fixture(scope="module")
def native(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """As the README's ``pip install`` leaves it; the module is this environment's, built before."""
    if _native.unavailable_reason() is not None:
        pytest.skip("the native module is absent")
    found = Environment(tmp_path_factory.mktemp("native") / "env", pure_wheel)
    shutil.copy(str(_native.module().__file__), found.package)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
@pytest.mark.parametrize(
    ("start", "in_clone"),
    [
        pytest.param(["sede", "bench"], False, id="sede-elsewhere"),
        pytest.param(["sede", "bench"], True, id="sede-in-a-clone"),
        pytest.param(["python", "-m", "benchmarks.run"], True, id="module-in-a-clone"),
    ],
)
def test_the_installed_package_is_measured(native, tmp_path, start, in_clone):
    folder = copy_sources(tmp_path / "clone") if in_clone else tmp_path
    file = tmp_path / "found.jsonl"
    done = run([native.scripts / start[0], *start[1:], *WORDS, "--out", file], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"measured: {native.package / '__init__.py'}"
    assert lines[2].startswith(f"native:   {native.package}/_cpu")
    assert lines[3] == "backends: sede cpu, sede torch"
    found = {r["implementation"]: r for r in map(json.loads, file.read_text().splitlines())}
    # The clone has no native module: with it, the process that measures memory would lack `cpu`.
    assert found["sede cpu"]["status"] == "ok"
    assert found["sede cpu"]["memory_from"] == "own process, VmHWM"
    assert found["sede cpu"]["extra_peak_mb"] is not None


def test_without_the_native_module_nothing_is_compared(pure, tmp_path):
    done = run([pure.scripts / "sede", "bench", *WORDS], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("sede bench: backend 'cpu' is missing: the native module is not")
    assert done.stderr.count("\n") == 1
    assert "missing:  sede cpu: the native module is not built" in done.stdout
    assert not list(tmp_path.iterdir())
