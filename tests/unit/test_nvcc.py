"""Where the CUDA compiler is looked for, and in which order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sede_kernels.backends.cuda import nvcc

ROOT = Path(__file__).parents[2]


def program(folder: Path) -> str:
    folder.mkdir(parents=True)
    path = folder / "nvcc"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A compiler in each place: a toolkit, the path, and the wheels of three versions."""
    site = tmp_path / "site-packages"
    found = {
        "toolkit": program(tmp_path / "cuda" / "bin"),
        "path": program(tmp_path / "bin"),
        "9": program(site / "nvidia" / "cu9" / "bin"),
        "13": program(site / "nvidia" / "cu13" / "bin"),
    }
    (site / "nvidia" / "cu14" / "bin").mkdir(parents=True)  # wheels without the compiler
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nowhere"), str(site)])
    return found


def test_cuda_home_then_the_path_then_the_newest_wheels(places, monkeypatch) -> None:
    assert nvcc.nvcc() == places["toolkit"]
    monkeypatch.delenv("CUDA_HOME")
    assert nvcc.nvcc() == places["path"]
    monkeypatch.setenv("PATH", "")
    assert nvcc.nvcc() == nvcc.from_wheels() == places["13"]
    monkeypatch.setattr(sys, "path", [])
    assert nvcc.nvcc() is None


def test_a_cuda_home_without_a_compiler_is_not_passed_over(places, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(Path(places["toolkit"]).parent))
    assert nvcc.nvcc() is None


def test_as_a_script_it_prints_the_compiler_or_what_to_do(places, tmp_path) -> None:
    script = [sys.executable, "-I", str(Path(nvcc.__file__))]
    for home, code in ((tmp_path / "cuda", 0), (tmp_path / "nowhere", 1)):
        environment = {"CUDA_HOME": str(home), "PATH": ""}
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stdout == (places["toolkit"] + "\n" if code == 0 else "")
        assert (nvcc.MISSING in done.stderr) == (code == 1)


def test_the_extra_of_pyproject_names_the_same_wheels() -> None:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("no clone of the sources")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^nvcc = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert extra is not None
    assert tuple(re.findall(r'"(.+?)"', extra[1])) == nvcc.WHEELS
