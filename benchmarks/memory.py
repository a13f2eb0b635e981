"""Extra peak memory of one call: in a process of its own on a CPU, by the allocator on a GPU."""

import ctypes
import gc
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import sede_kernels

from . import measured
from .case import Case, Inputs, Run
from .registry import OPERATIONS, find

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# Large blocks come from mmap and go back at once, so that none hides in a free list.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
# `python -c` looks for modules in the present folder first; this takes the parent's search path.
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; __import__(sys.argv[1]);"
    "sys.modules[sys.argv[1]].serve(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Peak:
    """What one call needed beyond its inputs.

    Attributes:
        status: ``ok``, ``out of memory`` or ``error``.
        extra_mb: MB (1e6 bytes), or None where it is not known.
        source: how it was found, or why not.
    """

    status: str
    extra_mb: float | None
    source: str


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on either device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "bad_alloc"))


def available_bytes() -> int | None:
    """Memory that can be had without swapping."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _field_kb(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    if found is None:
        raise OSError(f"{_STATUS} has no {name}")
    return int(found[1])


def _limit_address_space(extra_bytes: int) -> None:
    limit = _field_kb("VmSize") * 1024 + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _fault(error: BaseException) -> Peak:
    status = "out of memory" if out_of_memory(error) else "error"
    return Peak(status, None, f"{type(error).__name__}: {error}".splitlines()[0])


def _weigh(case: Case, name: str, inputs: Inputs, limit_bytes: int | None) -> Peak:
    """Peak of one variant's second call in this process."""
    try:
        if limit_bytes is not None:
            _limit_address_space(limit_bytes)
        run = find(OPERATIONS[case.op].variants(case), name).build(case, [inputs])
        run(0)  # compilers, thread stacks and library buffers are not the call's
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        _CLEAR.write_text("5")  # starts VmHWM over
        before = _field_kb("VmRSS")
        kept = run(0)
        peak = _field_kb("VmHWM")
        del kept
        return Peak("ok", max(0, peak - before) * 1024 / 1e6, "own process, VmHWM")
    except BaseException as error:
        return _fault(error)


def _weigh_and_send(
    case: Case, name: str, inputs: Inputs, threads: int, limit_bytes: int | None, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    pipe.send(_weigh(case, name, inputs, limit_bytes))


def _answer(child: BaseProcess, pipe: Connection, timeout_s: float) -> Peak:
    """What a started child sends, or how it ended without a word."""
    try:
        if pipe.poll(timeout_s):
            found: Peak = pipe.recv()
            return found
        child.kill()
        # Left out as a whole: timing it would take many times as long.
        return Peak("error", None, f"two calls took more than {timeout_s:.0f} s")
    except EOFError:  # the kernel's out-of-memory killer leaves no words
        child.join()
        if child.exitcode == -9:
            return Peak("out of memory", None, "killed by the kernel")
        return Peak("error", None, f"its process ended with status {child.exitcode}")
    finally:
        child.join()
        pipe.close()


def _weigh_all(
    case: Case,
    names: Sequence[str],
    threads: int,
    limit_bytes: int | None,
    timeout_s: float,
    pipe: Connection,
) -> None:
    """Draw inputs once, weigh each variant in a fork of this process, send the peaks in order."""
    try:
        generator = torch.Generator().manual_seed(1)
        inputs = OPERATIONS[case.op].draw(case, torch.device("cpu"), generator)
    except BaseException as error:
        for _ in names:
            pipe.send(_fault(error))
        return
    context = multiprocessing.get_context("fork")
    for name in names:
        here, there = context.Pipe(duplex=False)
        child = context.Process(
            target=_weigh_and_send, args=(case, name, inputs, threads, limit_bytes, there)
        )
        child.start()
        there.close()
        pipe.send(_answer(child, here, timeout_s))


def serve(handle: int) -> None:
    """Weigh one case after another, each in a fork of this process, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    torch.set_num_threads(1)  # a fork must not inherit a thread pool
    context = multiprocessing.get_context("fork")
    with Connection(handle) as pipe:
        pipe.send(measured.files())
        while True:
            try:
                request = pipe.recv()
            except EOFError:
                return
            child = context.Process(target=_weigh_all, args=(*request, pipe))
            child.start()
            child.join()
            pipe.send(child.exitcode)


class _Server:
    """A process of its own that has imported the suite, and only that, and serves requests."""

    def __init__(self) -> None:
        self.pipe, there = multiprocessing.Pipe()
        # First where the package came from: a search path may have changed since that import.
        home = str(Path(sede_kernels.__file__).resolve().parents[1])
        with there:
            handle = there.fileno()
            process = subprocess.Popen(
                [sys.executable, "-c", _START, __name__, str(handle), home, *sys.path],
                env=_MALLOC | os.environ,
                pass_fds=(handle,),
            )
        self.close = weakref.finalize(self, _end, process, self.pipe)
        try:
            theirs = self.pipe.recv()
        except EOFError:
            self.close()
            raise ValueError(
                f"the process that measures memory ended with status {process.returncode} before "
                "it began; measure without it by `--no-memory`"
            ) from None
        if theirs != measured.files():
            self.close()
            raise ValueError(
                f"the process that measures memory loads {theirs[0]} (native module: {theirs[1]}) "
                f"and not {measured.files()[0]}: start from another folder, or unset PYTHONPATH"
            )


def _end(process: "subprocess.Popen[bytes]", pipe: Connection) -> None:
    pipe.close()
    process.wait()


class Memory:
    """Measures peaks in children of a bare process that has only imported the libraries.

    Args:
        limit_bytes: most memory a call and its inputs may take; None: nine tenths of what is
            available, so that a greedy variant ends as a record and not as a frozen machine.
        timeout_s: of one variant's two calls.
    """

    def __init__(self, limit_bytes: int | None = None, timeout_s: float = 60.0) -> None:
        if limit_bytes is None:
            free = available_bytes()
            limit_bytes = None if free is None else int(0.9 * free)
        self.limit_bytes = limit_bytes
        self.timeout_s = timeout_s
        self.usable = _STATUS.exists() and _CLEAR.exists()
        self._server: _Server | None = None

    def peaks(self, case: Case, names: Sequence[str]) -> dict[str, Peak]:
        """Extra peak memory of the named variants on the CPU.

        Raises:
            ValueError: the process that measures would load another package than this one.
        """
        if not self.usable:
            return {name: Peak("ok", None, "not measured: needs Linux /proc") for name in names}
        if self._server is None:
            self._server = _Server()
        settings = (torch.get_num_threads(), self.limit_bytes, self.timeout_s)
        found: list[Peak] = []
        try:
            self._server.pipe.send((case, list(names), *settings))
            while isinstance(answer := self._server.pipe.recv(), Peak):
                found.append(answer)
        except (EOFError, OSError):  # the whole server was killed: the next case gets a new one
            self._server.close()
            self._server, answer = None, -9
        lost = Peak("error", None, f"the probing process ended with status {answer}")
        return dict.fromkeys(names, lost) | dict(zip(names, found, strict=False))


def device_peak(run: Run, device: torch.device) -> Peak:
    """Extra peak memory of one call on a GPU: kernels, too, allocate through torch."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = run(0)
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - before
    del kept
    return Peak("ok", extra / 1e6, "torch.cuda allocator")
