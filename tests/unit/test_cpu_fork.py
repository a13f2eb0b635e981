"""Forked children call every kernel and get the parent's bits, whatever had threads before."""

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import sede_kernels
from sede_kernels.backends import fork
from sede_kernels.backends.cpu import _native

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None or not hasattr(os, "fork"),
    reason="the native module is not built, or there is no fork",
)

NATIVE = ["bank_lse", "batch_lse", "hardest"]
EVERY = ["enqueue", "erase", "loss", "pairs", "similarity", *NATIVE]
FAMILIES = {"late": (["late"], NATIVE), "imported": (["kernels", "none", "torch"], EVERY)}


@pytest.mark.parametrize("mode", FAMILIES)
def test_children_and_grandchildren(mode: str, tmp_path: Path) -> None:
    package = str(Path(sede_kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fork_worker.py")), mode, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warm, names = FAMILIES[mode]
    expected = [
        f"{name}.{kin} {kernel} same"
        for name in warm for kin in ("child", "grandchild") for kernel in names
    ]  # fmt: skip
    assert sorted(done.stdout.splitlines()) == sorted(expected)


def exit_code_of_child(run) -> int:
    child = os.fork()
    if child == 0:
        os._exit(run())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_knows_what_it_is() -> None:
    assert not fork.is_child()
    assert exit_code_of_child(lambda: 10 + fork.is_child() + 2 * _native.shares_threads()) == 11
    assert not fork.is_child()


@pytest.mark.skipif(sys.platform != "linux", reason="the C function fork by its Linux name")
def test_a_fork_behind_pythons_back_is_noticed() -> None:
    """Without the hooks nobody ended the threads: they are taken for dead, and left alone."""
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        os._exit(exit_code_of_child(lambda: 10 + fork.is_child()) if fork.is_child() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_own_pool_has_as_many_threads_as_the_host_says() -> None:
    module, query, bank = _native.module(), torch.randn(64, 64), torch.randn(8192, 64)
    wanted = [0]

    @ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_uint32))
    def count(threads) -> int:
        threads[0] = wanted[0]
        return 0

    def threads_with(number: int) -> int:
        wanted[0] = number
        sede_kernels.hardest_negatives(query, bank, backend="cpu")
        return len(os.listdir("/proc/self/task"))

    try:
        module.set_parallel_for(0)
        module.set_thread_count(ctypes.cast(count, ctypes.c_void_p).value)
        assert threads_with(5) - threads_with(2) == 3
    finally:
        module.set_thread_count(_native._torch_function("torch_get_num_threads"))
        module.set_parallel_for(_native._torch_parallel_for())


_NO_THREADS = """
    import ctypes, torch
    from sede_kernels import hardest_negatives
    from sede_kernels.backends.cpu import _native

    query, bank = torch.randn(64, 64), torch.randn(8192, 64)
    module = _native.module()
    module.set_parallel_for(0)
    module.set_pool_threads(1)
    want = hardest_negatives(query, bank, backend="cpu")
    # A stack of half the address space for each new thread: there is room for one at most.
    library, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    assert not library.pthread_attr_init(attributes)
    assert not library.pthread_attr_setstacksize(attributes, ctypes.c_size_t(100 << 40))
    assert not library.pthread_setattr_default_np(attributes)
    module.set_pool_threads(4)
    for _ in range(2):
        found = hardest_negatives(query, bank, backend="cpu")
        assert all(map(torch.equal, found, want))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "pthread_setattr_default_np"), reason="glibc has the call"
)
def test_a_pool_that_gets_no_threads_runs_on_the_caller() -> None:
    command = [sys.executable, "-c", textwrap.dedent(_NO_THREADS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
