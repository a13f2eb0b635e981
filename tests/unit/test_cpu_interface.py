"""A native module of other sources than the package's: one clear sentence on every way to it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import sede_kernels
from sede_kernels.backends.cpu import _interface, _native

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)
PACKAGE = Path(sede_kernels.__file__).parent
CHECKOUT = Path(__file__).parents[2]


def older(**attributes: str) -> ModuleType:
    module = ModuleType("sede_kernels._cpu")
    module.__file__ = "/elsewhere/_cpu.so"
    vars(module).update(attributes)
    return module


def test_the_module_was_built_from_these_sources() -> None:
    files = _interface.sources(CHECKOUT)
    assert {"bind_cpu.cpp", "bind_checks.h", "api.h"} <= {file.name for file in files}
    assert _native.module().interface == _interface.digest(files)
    assert _native.module().version == sede_kernels.__version__


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose sources lie beside it."""
    (tmp_path / "csrc" / "kernels").mkdir(parents=True)
    (tmp_path / "csrc" / "bind_cpu.cpp").write_text("void f(int);")
    (tmp_path / "csrc" / "kernels" / "api.h").write_text("enum {};")
    monkeypatch.setattr(_interface, "_PACKAGE", tmp_path / "sede_kernels")
    return tmp_path


@pytest.mark.parametrize("file", ["bind_cpu.cpp", "kernels/api.h", "bind_new.h"])
def test_sources_changed_since_it_was_built(checkout: Path, file: str) -> None:
    built = _interface.digest(_interface.sources(checkout))
    assert _interface.mismatch(older(interface=built, version="0.0.1")) is None
    (checkout / "csrc" / file).write_text("void f(int, int);")
    assert _interface.mismatch(older(interface=built)) == (
        "the native module /elsewhere/_cpu.so was built from other sources: rebuild it by "
        f"`pip install -e .` in {checkout}"
    )


def test_an_installed_package_goes_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_interface, "_PACKAGE", tmp_path / "sede_kernels")
    found = SimpleNamespace(version="2.0.0", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(_interface, "distribution", lambda name: found)
    assert _interface.mismatch(older(interface="a", version="2.0.0")) is None
    for module in (older(), older(interface="a", version="1.9.0")):
        assert str(_interface.mismatch(module)).endswith(
            "install the package again by `pip install --force-reinstall sede-kernels`"
        )
    found.locate_file = lambda name: Path("/other") / name  # that distribution is not this package
    assert _interface.mismatch(older(interface="a", version="1.9.0")) is None


def test_every_way_to_an_older_module_says_so(tmp_path: Path) -> None:
    """A package with a module that knows none of its functions, as one of 0.1.0 would be."""
    skip = shutil.ignore_patterns("_cpu*", "__pycache__", "training", "integrations")
    shutil.copytree(PACKAGE, tmp_path / "sede_kernels", ignore=skip)
    (tmp_path / "sede_kernels" / "_cpu.py").write_text("def isa():\n    return 'avx2'\n")
    code = """
import warnings, torch, sede_kernels
from sede_kernels import info
from sede_kernels.backends import cpu
reason = sede_kernels.available_backends()["cpu"]
assert "was built from other sources" in reason and "pip install" in reason, reason
assert cpu.describe() is None and info.main([]) == 0
rows = torch.eye(3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    bank = sede_kernels.MemoryBank(4, 3)
    bank.enqueue(rows)
    sede_kernels.weighted_info_nce(rows, rows, bank)
    sede_kernels.attention_erase(rows)
(said,) = map(str, [one.message for one in caught])
assert reason in said, said
for call in (
    lambda: sede_kernels.weighted_info_nce(rows, rows, rows, backend="cpu"),
    lambda: sede_kernels.hardest_negatives(rows, rows, backend="cpu"),
    lambda: sede_kernels.attention_erase(rows, backend="cpu"),
    lambda: sede_kernels.cross_attention_similarity(rows[None], rows[None], backend="cpu"),
    lambda: bank.enqueue(rows, backend="cpu"),
):
    try:
        call()
    except sede_kernels.BackendUnavailableError as error:
        assert reason in str(error), error
    else:
        raise SystemExit("an older module served")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was built from other sources" in done.stdout
