"""Installing where there is no compiler, and what the installed package then says of itself."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.install.conftest import SETUPTOOLS, Environment, copy_sources, run

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
import torch, sede_kernels
from sede_kernels import functional
reason = sede_kernels.available_backends()["cpu"]
assert "not built" in reason, reason
q = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
assert functional.weighted_info_nce(q, q, q, backend="auto").isfinite()
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


def test_an_unknown_choice_is_refused(python: Python, tree: Path) -> None:
    done = python("setup.py", "-q", "build_ext", SEDE_BUILD_CPU="maybe")
    assert done.returncode != 0
    assert "SEDE_BUILD_CPU must be one of auto, 1, 0, got 'maybe'." in done.stderr
