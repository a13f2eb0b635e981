"""The source archive holds the C++ code, and builds into a wheel with the native module."""

import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from tests.install.conftest import (
    ROOT,
    SETUPTOOLS,
    Environment,
    build_wheel,
    checked,
    copy_sources,
)

pytest.importorskip("setuptools", minversion=SETUPTOOLS)

#: The baseline kernels only and unoptimized: it is about what is there, and takes seconds.
QUICK = (
    "-DSEDE_PORTABLE=ON -DSEDE_OPTIMIZE=-O0 -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0"
)

PROGRAM = """
import torch, sede_kernels
from sede_kernels.backends.cpu import _native
reason = sede_kernels.available_backends()["cpu"]
assert reason is None, reason
q, bank = torch.nn.functional.normalize(torch.randn(2, 64, 33, dtype=torch.float64), dim=-1)
losses = [
    sede_kernels.weighted_info_nce(q[:9].to(dtype), q[9:18].to(dtype), bank.to(dtype), backend=name)
    for name, dtype in (("cpu", torch.float32), ("reference", torch.float64))
]
print(_native.module().__file__, _native.module().isa(), abs(float(losses[0] - losses[1])))
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = copy_sources(tmp_path_factory.mktemp("sdist") / "source")
    checked([sys.executable, "setup.py", "-q", "sdist", "-d", "out"], tree)
    (archive,) = (tree / "out").glob("*.tar.gz")
    return archive


def test_it_holds_every_source_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    for folder in ("csrc", "sede_kernels", "tests", "examples"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted = {str(path.relative_to(ROOT)) for path in files}
        built = {name for name in wanted if name.endswith((".so", ".pyc"))}
        assert wanted - built <= held, folder
    assert {"CMakeLists.txt", "pyproject.toml", "setup.py", "LICENSE", "README.md"} <= held
    assert "benchmarks/operations/bank.py" in held
    assert not [name for name in held if name.endswith((".so", ".pyc", ".jsonl"))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_it_builds_into_a_native_wheel(sdist: Path, tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    variables = {"SEDE_BUILD_CPU": "1", "SEDE_CMAKE_ARGS": QUICK}
    wheel = build_wheel(sdist, tmp_path / "out", **variables)
    assert f"-cp3{sys.version_info.minor}-" in wheel.name
    assert "none-any" not in wheel.name
    installed = Environment(tmp_path / "env", wheel)
    file, isa, error = checked([installed.python, "-c", PROGRAM], tmp_path).split()
    assert Path(file).parent == installed.package
    assert isa == "scalar"
    assert float(error) < 1e-5
