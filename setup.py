"""Builds the optional native module; all metadata is in pyproject.toml.

SEDE_BUILD_CPU=auto (default): build it, and install pure Python where that fails.
SEDE_BUILD_CPU=1: build it or fail. SEDE_BUILD_CPU=0: pure Python.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SETUPTOOLS = 77  # the first to read `license = "Apache-2.0"`
CHOICES = ("auto", "1", "0")
#: The name under which the folder ``benchmarks`` is installed.
SUITE = "sede_kernels._bench"


class BuildError(RuntimeError):
    """The native module could not be built."""


def packages() -> list[str]:
    """The library and, as a part of it, the benchmark suite."""
    library = find_packages(str(ROOT), include=["sede_kernels", "sede_kernels.*"])
    parts = find_packages(str(ROOT / "benchmarks"))
    return [*library, SUITE, *(f"{SUITE}.{part}" for part in parts)]


def choice() -> str:
    """The value of SEDE_BUILD_CPU, checked."""
    value = os.environ.get("SEDE_BUILD_CPU", "auto") or "auto"
    if value not in CHOICES:
        sys.exit(f"SEDE_BUILD_CPU must be one of {', '.join(CHOICES)}, got {value!r}.")
    return value


class CMakeBuild(build_ext):
    """Runs CMake for the one module; ``auto`` turns a failure into a notice."""

    def run(self) -> None:
        """Build, or explain why not."""
        try:
            super().run()
        except BuildError as error:
            if choice() == "1":
                sys.exit(f"SEDE_BUILD_CPU=1: the native CPU kernels could not be built: {error}")
            # The wheel then holds no native code: say so to whatever names and lists its files.
            self.extensions = []
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True  # decided before the build: py3-none-any after all
            boxed(f"sede-kernels: no native CPU kernels ({error}); backend 'torch' serves instead.")

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and copy the module to where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake")
        if cmake is None:
            raise BuildError("cmake not found")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_dir()}",
            f"-DSEDE_VERSION={self.distribution.get_version()}",
        ]  # fmt: skip
        ninja = shutil.which("ninja")
        if ninja:
            # The cache of an earlier isolated build names a ninja that is gone by now.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        checked([*configure, *os.environ.get("SEDE_CMAKE_ARGS", "").split()])
        checked([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)])
        built = next(build.glob("_cpu*.so"), None)
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
    packages=packages(),
    package_dir={SUITE: "benchmarks"},
    ext_modules=[] if choice() == "0" else [Extension("sede_kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
