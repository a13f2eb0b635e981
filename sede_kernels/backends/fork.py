"""What ``os.fork`` does to threads, put right for the child.

A child inherits GNU OpenMP's record of threads that do not exist there: torch's first parallel loop
would wait for them for ever. So the thread that forks ends its OpenMP threads first. The parent
starts them again in its next parallel loop, and the child starts its own.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

_PAUSE_SOFT = 1  # omp_pause_soft: threads end, settings stay
_FORKED_WITHOUT_EXEC = 0x40  # Linux's PF_FORKNOEXEC, in the flags of /proc/self/stat


def _forked_without_exec() -> bool:
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        return bool(int(fields[6]) & _FORKED_WITHOUT_EXEC)
    except (OSError, ValueError, IndexError):
        return False


class _Process:
    """This process: whether it is a fork, and whether its OpenMP threads are known to be alive."""

    def __init__(self) -> None:
        self.id = os.getpid()
        self.is_child = _forked_without_exec()
        self.intact = not self.is_child

    def end_threads(self) -> None:
        """Before a fork. Dead threads cannot be ended: the call would wait for them."""
        self.intact = self.intact and self.id == os.getpid()
        library = torch_library()
        # The OpenMP of LLVM and of Intel looks after its children itself.
        if not self.intact or library is None or hasattr(library, "__kmpc_fork_call"):
            return
        if hasattr(library, "omp_pause_resource_all"):
            library.omp_pause_resource_all(_PAUSE_SOFT)

    def enter_child(self) -> None:
        """After a fork, in the child."""
        self.id = os.getpid()
        self.is_child = True


@cache
def torch_library() -> ctypes.CDLL | None:
    """The library that holds torch's C functions and leads to its OpenMP, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            return ctypes.CDLL(str(folder / name))
        except OSError:
            continue
    return None


def is_child() -> bool:
    """Whether this process was forked, and torch's threads may be gone."""
    return _process.is_child or _process.id != os.getpid()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_process.end_threads, after_in_child=_process.enter_child)
