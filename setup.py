"""Builds the optional native modules; all metadata but the README is in pyproject.toml.

SEDE_BUILD_CPU=auto (default): build the CPU kernels, and go without where that fails.
SEDE_BUILD_CUDA=auto (default): build the CUDA kernels for this machine's GPUs where there are some
and nvcc is found; on a machine without a GPU nothing.
1: build or fail. 0: do not. SEDE_CUDA_ARCHS: the compute capabilities for SEDE_BUILD_CUDA=1, as
"8.0;9.0;8.0+PTX"; without it all that csrc/cuda/CMakeLists.txt names. Where nvcc is missing then,
pip gets it from wheels into the build's own environment.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SETUPTOOLS = 77  # the first to read `license = "Apache-2.0"`
CHOICES = ("auto", "1", "0")
#: The name under which the folder ``benchmarks`` is installed.
SUITE = "sede_kernels._bench"


class BuildError(RuntimeError):
    """A native module could not be built."""


def packages() -> list[str]:
    """The library and, as a part of it, the benchmark suite."""
    library = find_packages(str(ROOT), include=["sede_kernels", "sede_kernels.*"])
    parts = find_packages(str(ROOT / "benchmarks"))
    return [*library, SUITE, *(f"{SUITE}.{part}" for part in parts)]


def readme() -> str:
    """The README as PyPI shows it, without the repository around it: its links made absolute."""
    address = re.search(r'^Repository = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    if address is None:
        raise RuntimeError("pyproject.toml has no line `Repository = ...`")

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}({address[1]}/{kind}/main/{link[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)]+)\)", absolute, read("README.md"))


def read(name: str) -> str:
    """A text file of the sources."""
    return (ROOT / name).read_text(encoding="utf-8")


class Module(NamedTuple):
    """A native module: what it is for, and what serves without it."""

    variable: str  # the environment's choice
    kernels: str
    instead: str

    @property
    def choice(self) -> str:
        """auto, 1 or 0, checked."""
        value = os.environ.get(self.variable, "auto") or "auto"
        if value not in CHOICES:
            sys.exit(f"{self.variable} must be one of {', '.join(CHOICES)}, got {value!r}.")
        return value


CPU, CUDA = "sede_kernels._cpu", "sede_kernels._cuda"
MODULES = {
    CPU: Module("SEDE_BUILD_CPU", "native CPU kernels", "backend 'torch' serves instead"),
    CUDA: Module("SEDE_BUILD_CUDA", "CUDA kernels", "backend 'triton' or 'torch' serves instead"),
}


NVCC = runpy.run_path(str(ROOT / "sede_kernels" / "backends" / "cuda" / "nvcc.py"))


def own_capabilities() -> str:
    """Compute capabilities of this machine's GPUs, joined by semicolons."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return ";".join(sorted(set(said.stdout.split()))) if said.returncode == 0 else ""


def extensions() -> list[Extension]:
    """The modules to build."""
    names = [] if MODULES[CPU].choice == "0" else [CPU]
    wanted = MODULES[CUDA].choice
    if wanted == "1" or (wanted == "auto" and NVCC["nvcc"]() and own_capabilities()):
        names.append(CUDA)
    return [Extension(name, sources=[]) for name in names]


def build_requirements() -> list[str]:
    """What pip is asked for besides pyproject.toml's: nvcc, where it is demanded and missing.

    Only pip's hooks read this; `python setup.py` would install it beside the sources.
    """
    hooks = "setuptools.build_meta" in sys.modules
    demanded = MODULES[CUDA].choice == "1" and not os.environ.get("CUDA_HOME")
    return list(NVCC["WHEELS"]) if hooks and demanded and NVCC["nvcc"]() is None else []


def cuda_options() -> list[str]:
    """What CMake is told of the CUDA kernels."""
    compiler = NVCC["nvcc"]()
    if compiler is None:
        raise BuildError(NVCC["MISSING"])
    options = ["-DSEDE_CUDA=ON", "-DSEDE_PYTHON=OFF", f"-DSEDE_NVCC={compiler}"]
    own = own_capabilities() if MODULES[CUDA].choice == "auto" else ""
    capabilities = os.environ.get("SEDE_CUDA_ARCHS") or own
    # Without a choice of today, that of an earlier build in this folder is taken back.
    return [*options, f"-DSEDE_CUDA_ARCHS={capabilities}" if capabilities else "-USEDE_CUDA_ARCHS"]


class CMakeBuild(build_ext):
    """Runs CMake for each module; ``auto`` turns a failure into a notice."""

    def run(self) -> None:
        """Build, or explain why not."""
        super().run()
        self.extensions = [ext for ext in self.extensions if ext.name not in self._failed]
        self.distribution.ext_modules = self.extensions
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None and not self.extensions:
            # No native code after all: say so to whatever names the wheel (py3-none-any).
            wheel.root_is_pure = True

    def build_extensions(self) -> None:
        """One module after the other; the failure of one is no reason to go without the other."""
        self._failed: set[str] = set()
        for ext in self.extensions:
            try:
                self.build_extension(ext)
            except BuildError as error:
                module = MODULES[ext.name]
                if module.choice == "1":
                    sys.exit(
                        f"{module.variable}=1: the {module.kernels} could not be built: {error}"
                    )
                self._failed.add(ext.name)
                boxed(f"sede-kernels: no {module.kernels} ({error}); {module.instead}.")

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and copy the module to where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        name = ext.name.rpartition(".")[2]
        # The CPU module keeps the folder that clones have built it in so far.
        build = Path(self.build_temp).resolve() / ("" if ext.name == CPU else name)
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake")
        if cmake is None:
            raise BuildError("cmake not found")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_dir()}",
            f"-DSEDE_VERSION={self.distribution.get_version()}",
            *(cuda_options() if ext.name == CUDA else []),
        ]  # fmt: skip
        ninja = shutil.which("ninja")
        if ninja:
            # The cache of an earlier isolated build names a ninja that is gone by now.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        checked([*configure, *os.environ.get("SEDE_CMAKE_ARGS", "").split()])
        jobs = str(os.cpu_count() or 1)
        checked([cmake, "--build", str(build), "--target", name, "--parallel", jobs])
        built = next(build.rglob(f"{name}*.so"), None)
        if built is None:
            raise BuildError(f"CMake left no module in {build}")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: replace it, do not write into it.
        fresh = target.with_name(target.name + ".new")
        shutil.copyfile(built, fresh)
        fresh.replace(target)


def pybind11_dir() -> str:
    """CMake folder of pybind11."""
    try:
        import pybind11
    except ModuleNotFoundError as error:
        raise BuildError("pybind11 not found") from error
    return str(pybind11.get_cmake_dir())


def checked(command: list[str]) -> None:
    """Run a command; on failure show what it said and name its last complaint."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        output = result.stdout + result.stderr
        print(output, file=sys.stderr)
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), "no message")
        raise BuildError(f"{' '.join(command[:2])} failed: {said}")


def boxed(line: str) -> None:
    """Print one line that stands out in a build log."""
    bar = "+" + "-" * (len(line) + 2) + "+"
    print(f"{bar}\n| {line} |\n{bar}", file=sys.stderr)


if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:
    sys.exit(
        f"sede-kernels: building needs setuptools {SETUPTOOLS} or newer, found "
        f"{setuptools.__version__}: run `pip install -U 'setuptools>={SETUPTOOLS}'`, or leave out "
        "--no-build-isolation."
    )
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    packages=packages(),
    package_dir={SUITE: "benchmarks"},
    ext_modules=extensions(),
    setup_requires=build_requirements(),
    cmdclass={"build_ext": CMakeBuild},
)
