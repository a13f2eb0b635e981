"""Builds the machine with CMake into a cache outside the clone, once for a state of its sources."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_LIBRARY = "libptx_machine.so"


def cache_folder() -> Path:
    """``SEDE_PTX_CACHE``, or a folder of the user's cache."""
    named = os.environ.get("SEDE_PTX_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sede-kernels" / "ptx-machine"


def _compiler() -> str:
    name = os.environ.get("CXX", "c++")
    done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def digest(sanitize: str = "") -> str:
    """Of the sources, the compiler and the processor."""
    found = hashlib.sha256()
    for path in sorted([*_FOLDER.glob("src/*"), _FOLDER / "CMakeLists.txt"]):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    for text in (sanitize, _compiler(), _processor()):
        found.update(text.encode())
    return found.hexdigest()[:16]


def run(*command: str) -> None:
    """Run a command of a build; on failure raise with the end of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"A build of the PTX machine failed: {' '.join(command)}\n"
            f"{(done.stdout + done.stderr)[-4000:]}"
        )


@contextmanager
def one_at_a_time(home: Path) -> Iterator[None]:
    """Processes that want the same folder of the cache come one after the other.

    Whoever waited finds what the first has built.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f"{home.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def library(sanitize: str = "") -> Path:
    """The path of the shared library, built if need be.

    Args:
        sanitize: what ``-fsanitize=`` gets; empty for the fast build.

    Raises:
        RuntimeError: there is no CMake, or the build fails.
    """
    home = cache_folder() / digest(sanitize)
    if (home / _LIBRARY).exists():
        return home / _LIBRARY
    cmake = shutil.which("cmake")
    if cmake is None:
        raise RuntimeError("The PTX machine is built with CMake, which is not installed: "
                           "pip install cmake.")  # fmt: skip
    with one_at_a_time(home), tempfile.TemporaryDirectory(dir=home.parent) as name:
        if (home / _LIBRARY).exists():
            return home / _LIBRARY
        folder = Path(name)
        options = [f"-DPTX_SANITIZE={sanitize}"]
        if shutil.which("ninja"):
            options.append("-GNinja")
        run(cmake, "-S", str(_FOLDER), "-B", str(folder / "build"), *options)
        run(cmake, "--build", str(folder / "build"), "--parallel", str(os.cpu_count() or 1))
        home.mkdir(exist_ok=True)
        os.replace(folder / "build" / _LIBRARY, home / _LIBRARY)
    return home / _LIBRARY
