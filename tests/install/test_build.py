"""Installing where there is no compiler, and what the installed package then says of itself."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sede_kernels.backends.cuda.nvcc import WHEELS, from_wheels
from tests.install.conftest import ROOT, SETUPTOOLS, Environment, copy_sources, run

pytest.importorskip("setuptools", minversion=SETUPTOOLS)

Python = Callable[..., CompletedProcess[str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources alone, with nothing built."""
    return copy_sources(tmp_path / "source")


@pytest.fixture
def python(tree: Path, bare: Environment) -> Python:
    """Python in the tree, with no program to be found on PATH."""
    nowhere = tree.parent / "nowhere"
    nowhere.mkdir()
    paths = {"PATH": str(nowhere), "PYTHONPATH": str(tree)}
    return lambda *words, **variables: run([bare.python, *words], tree, **(paths | variables))


def test_without_a_compiler_the_package_is_pure_and_says_so(python: Python, tree: Path) -> None:
    done = python("setup.py", "-q", "build", "--build-base", "out", "--build-lib", "out/lib")
    assert done.returncode == 0, done.stderr
    assert "| sede-kernels: no native CPU kernels (" in done.stderr
    assert "backend 'torch' serves instead." in done.stderr
    assert (tree / "out/lib/sede_kernels/reference.py").is_file()
    assert not list((tree / "out").rglob("_cpu*"))
    code = """
import os, warnings
import torch, sede_kernels
from sede_kernels import functional
reason = sede_kernels.available_backends()["cpu"]
assert "not built" in reason, reason
q = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    functional.weighted_info_nce(q, q, q, backend="torch")
    os.environ["SEDE_BACKEND"] = "torch"
    functional.weighted_info_nce(q, q, q)
    assert not caught, caught[0].message  # asked for
    del os.environ["SEDE_BACKEND"]
    for _ in range(2):
        assert functional.weighted_info_nce(q, q, q, backend="auto").isfinite()
    functional.hardest_negatives(q, q)
    (said,) = map(str, [one.message for one in caught])  # once a process
assert said.startswith("sede_kernels: backend 'torch' serves, which is slower"), said
assert "not built" in said and "set SEDE_BACKEND=torch to choose 'torch'" in said, said
try:
    functional.weighted_info_nce(q, q, q, backend="cpu")
except sede_kernels.BackendUnavailableError as error:
    assert "not built" in str(error), error
else:
    raise SystemExit("backend='cpu' fell back")
from sede_kernels.info import main
raise SystemExit(main([]))
"""
    used = python("-c", code, PYTHONPATH=str(tree / "out/lib"))
    assert used.returncode == 0, used.stderr
    assert "not built" in used.stdout


def test_a_demanded_build_fails_with_the_reason(python: Python, tree: Path) -> None:
    done = python("setup.py", "-q", "build_ext", SEDE_BUILD_CPU="1")
    assert done.returncode != 0
    assert "SEDE_BUILD_CPU=1: the native CPU kernels could not be built: " in done.stderr


@pytest.mark.parametrize("choice", ["1", "auto"])
def test_pip_is_asked_for_nvcc_where_the_build_demands_it(python: Python, choice: str) -> None:
    code = "from setuptools import build_meta as b; print(b.get_requires_for_build_wheel())"
    done = python("-c", code, SEDE_BUILD_CUDA=choice, CUDA_HOME="")
    assert done.returncode == 0, done.stderr
    wanted = list(WHEELS) if choice == "1" and from_wheels() is None else []
    assert done.stdout.splitlines()[-1] == str(wanted)


def test_a_demanded_build_of_cuda_names_the_wheels(python: Python) -> None:
    if from_wheels() is not None:
        pytest.skip("the wheels are installed")
    done = python("setup.py", "-q", "build_ext", SEDE_BUILD_CPU="0", SEDE_BUILD_CUDA="1",
                  CUDA_HOME="")  # fmt: skip
    assert done.returncode != 0
    assert "SEDE_BUILD_CUDA=1: the CUDA kernels could not be built: " in done.stderr
    assert "`pip install nvidia-cuda-nvcc " in done.stderr or "cmake not found" in done.stderr


@pytest.mark.parametrize("wanted", ["", "8.0;9.0"])
def test_a_build_forgets_the_architectures_of_an_earlier_one(
    python: Python, tmp_path: Path, wanted: str
) -> None:
    programs = {"nvcc": "", "cmake": 'echo "error: $*" >&2; exit 1'}
    for name, does in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    done = python("setup.py", "-q", "build_ext", SEDE_BUILD_CPU="0", SEDE_BUILD_CUDA="1",
                  SEDE_CUDA_ARCHS=wanted, PATH=str(tmp_path), CUDA_HOME="")  # fmt: skip
    assert done.returncode != 0
    option = f"-DSEDE_CUDA_ARCHS={wanted}" if wanted else "-USEDE_CUDA_ARCHS"
    assert option in done.stderr.split(), done.stderr


def test_an_unknown_choice_is_refused(python: Python, tree: Path) -> None:
    done = python("setup.py", "-q", "build_ext", SEDE_BUILD_CPU="maybe")
    assert done.returncode != 0
    assert "SEDE_BUILD_CPU must be one of auto, 1, 0, got 'maybe'." in done.stderr


def test_a_wheel_without_native_code_is_for_every_machine(python: Python, tree: Path) -> None:
    words = ["wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", "out", "."]
    done = python("-m", "pip", *words)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "out").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: true" in archive.read(name)


def test_an_old_setuptools_is_named(python: Python) -> None:
    code = (
        "import runpy, setuptools; setuptools.__version__ = '65.5.0'; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = python("-c", code)
    assert done.returncode == 1
    assert "needs setuptools 77 or newer, found 65.5.0: run `pip install -U" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sources_hold_what_pyproject_asks_of_setuptools() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = re.search(r'requires = \["setuptools>=(\d+)"', text)
    checked = re.search(
        r"^SETUPTOOLS = (\d+)", (ROOT / "setup.py").read_text(encoding="utf-8"), re.M
    )
    assert asked and checked
    assert asked[1] == checked[1] == SETUPTOOLS
