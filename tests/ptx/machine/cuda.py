"""The ``cuda`` backend on the machine: its module with PTX inside, and a driver that runs it.

``install("sm_80")`` is enough: the module is built by nvcc when it is first imported, once for a
state of its sources, into the cache of the machine. Launches run on CPU tensors; a fault ends the
call with its text.
"""

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from torch import Tensor

from sede_kernels.backends.cuda.nvcc import MISSING, nvcc
from tests.ptx.machine import build
from tests.ptx.machine.driver import SHARED_MEMORY
from tests.ptx.machine.library import machine
from tests.ptx.machine.memory import spans_of
from tests.ptx.machine.module import Module, Options

_ROOT = Path(__file__).parents[3]
_NAME = "sede_kernels._cuda"
#: What nvcc is told, where the name of the GPU alone leaves something out.
_COMPILED_FOR = {"sm_90": "sm_90a"}


def _digest(architecture: str, compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    found = hashlib.sha256()
    sources = [_ROOT / "CMakeLists.txt", *sorted((_ROOT / "csrc").glob("bind_cuda*"))]
    for path in [*sources, *sorted(p for p in (_ROOT / "csrc/cuda").rglob("*") if p.is_file())]:
        found.update(path.name.encode())
        found.update(path.read_bytes())
    for text in (architecture, said.stdout, sysconfig.get_config_var("EXT_SUFFIX")):
        found.update(text.encode())
    return found.hexdigest()[:16]


def module_path(architecture: str) -> Path:
    """The module with PTX for that architecture, built if need be.

    Raises:
        RuntimeError: there is no nvcc or CMake, or the build fails.
    """
    compiler, cmake = nvcc(), shutil.which("cmake")
    if compiler is None or cmake is None:
        raise RuntimeError(MISSING if compiler is None else "CMake was not found.")
    import pybind11

    home = build.cache_folder() / f"cuda-{_digest(architecture, compiler)}"
    built = home / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if built.exists():
        return built
    with build.one_at_a_time(home), tempfile.TemporaryDirectory(dir=home.parent) as name:
        if built.exists():
            return built
        options = [
            "-DSEDE_PYTHON=OFF",
            "-DSEDE_CUDA=ON",
            f"-DSEDE_CUDA_PTX={_COMPILED_FOR.get(architecture, architecture)}",
            f"-DSEDE_NVCC={compiler}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if shutil.which("ninja"):
            options.append("-GNinja")
        build.run(cmake, "-S", str(_ROOT), "-B", name, *options)
        build.run(
            cmake, "--build", name, "--target", "_cuda", "--parallel", str(os.cpu_count() or 1)
        )
        home.mkdir(exist_ok=True)
        folder = Path(name) / "csrc" / "cuda"
        names = [
            entry
            for text in sorted(folder.glob("*.ptx"))
            for entry in re.findall(r"\.entry (\w+)\(", text.read_text())
        ]
        (home / "kernels.txt").write_text("\n".join(names))
        os.replace(folder / built.name, built)
    return built


def kernels(architecture: str) -> list[str]:
    """The names of the kernels in the module."""
    return (module_path(architecture).parent / "kernels.txt").read_text().split()


class _Finder:
    """Finds the native module where the machine built it."""

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _NAME or nvcc() is None:
            return None
        return importlib.util.spec_from_file_location(name, module_path(self._architecture))


def _watch(tensors: list[Tensor]) -> None:
    """Launches from here on may reach these tensors and nothing else."""
    driver = machine()
    driver.ptx_cuda_forget()
    named = [(f"tensor {number}", tensor) for number, tensor in enumerate(tensors)]
    for start, end, name in spans_of(named):
        driver.ptx_cuda_buffer(start, end - start, 0, name.encode())


def report() -> tuple[int, int, list[str]]:
    """Launches and warp instructions so far, and the names of the kernels that ran."""
    numbers = (ctypes.c_uint64 * 2)()
    size = 1 << 16
    text = ctypes.create_string_buffer(size)
    machine().ptx_cuda_report(numbers, text, size)
    return numbers[0], numbers[1], text.value.decode().split()


def launched(since: int = 0) -> list[str]:
    """The kernels of all launches but the first ``since``, in their order."""
    driver = machine()
    size = driver.ptx_cuda_launched(ctypes.c_uint64(since), None, 0) + 1
    text = ctypes.create_string_buffer(size)
    driver.ptx_cuda_launched(ctypes.c_uint64(since), text, size)
    return text.value.decode().split()


def texts(architecture: str) -> dict[str, str]:
    """Kernel -> the PTX text in the module that it is in."""
    code = module_path(architecture).read_bytes()
    found = {}
    for text in re.findall(rb"//\n// Generated by NVIDIA[^\0]*", code):
        for entry in re.findall(rb"\.entry (\w+)\(", text):
            found[entry.decode()] = text.decode()
    return found


def stand_in(modules: dict[str, Module]) -> None:
    """Launches of these kernels run those of the modules from here on, all others their own.

    The modules must live until the next call.
    """
    machine().ptx_cuda_stand_in(b"", None)
    for kernel, module in modules.items():
        machine().ptx_cuda_stand_in(kernel.encode(), module.handle)


def configure(
    architecture: str, cores: int = 4, options: Options | None = None, *, idle: bool = False
) -> None:
    """What the driver plays; ``idle``: launches do nothing, so that the host's time is left."""
    number = int(architecture.removeprefix("sm_"))
    machine().ptx_cuda_configure(
        number // 10,
        number % 10,
        cores,
        SHARED_MEMORY[architecture],
        (options or Options()).numbers(),
        int(idle),
    )


def install(architecture: str, cores: int = 4, options: Options | None = None) -> None:
    """Serve ``backend="cuda"`` on CPU tensors as on a GPU of this architecture, from here on."""
    configure(architecture, cores, options)
    os.environ["SEDE_CUDA_DRIVER"] = str(build.library(os.environ.get("SEDE_PTX_SANITIZE", "")))
    if "SEDE_CUDA_MODULE" not in os.environ:
        sys.meta_path.insert(0, _Finder(architecture))
    from sede_kernels.backends import cuda as backend

    backend.emulate(_watch)


def take_over() -> None:
    """Serve what asks for backend ``triton`` by ``cuda``: its tests, on the other kernels."""
    from sede_kernels.backends import registry

    registry.PACKAGES["triton"] = registry.PACKAGES["cuda"]
    registry._package.cache_clear()
    registry._function.cache_clear()
