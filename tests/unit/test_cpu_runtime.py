"""The native module in its process: instruction set by the environment, threads, the GIL."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

import sede_kernels
from sede_kernels import hardest_negatives
from sede_kernels.backends import cpu
from sede_kernels.backends.cpu import _native
from tests.conftest import unit

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)


def in_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_environment_chooses_the_instruction_set() -> None:
    code = "from sede_kernels.backends import cpu; print(cpu.describe())"
    done = in_process(code, SEDE_CPU_ISA="scalar")
    assert done.stdout.startswith("scalar of scalar"), done.stderr
    assert in_process(code, SEDE_CPU_ISA="sse9").stderr.strip().endswith("got 'sse9'.")


def test_the_best_instruction_set_is_the_default() -> None:
    module = _native.module()
    assert module.supported_isas()[0] == "scalar"
    wanted = os.environ.get("SEDE_CPU_ISA") or module.supported_isas()[-1]
    assert str(cpu.describe()).startswith(f"{wanted} of ")
    assert sede_kernels.available_backends()["cpu"] is None


def test_set_num_threads_is_honoured() -> None:
    """One thread: the calling thread does all the work. Two: it does not."""
    code = """
import time, torch
from sede_kernels import hardest_negatives
torch.set_num_threads({threads})
query, bank = torch.randn(256, 64), torch.randn(40000, 64)
hardest_negatives(query, bank, backend="cpu")
main, every = time.thread_time(), time.process_time()
for _ in range(8):
    hardest_negatives(query, bank, backend="cpu")
main, every = time.thread_time() - main, time.process_time() - every
print(main / every)
"""
    alone, shared = (
        float(in_process(code.format(threads=n), OMP_WAIT_POLICY="passive").stdout) for n in (1, 2)
    )
    assert alone > 0.95
    assert shared < 0.97


def test_the_gil_is_released() -> None:
    """No thread is made to hand the GIL over, so another one runs only where it is released."""
    query = unit(512, 64, dtype=torch.float32)
    bank = unit(100_000, 64, dtype=torch.float32)
    values, indices = torch.empty(512, 1), torch.empty(512, 1, dtype=torch.int64)
    call = (query, (bank, None, None), None, 1, values, indices)
    hardest = _native.module().hardest
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            ticks[0] += 1

    other, interval = threading.Thread(target=tick), sys.getswitchinterval()
    other.start()
    sys.setswitchinterval(1000.0)
    try:
        before = ticks[0]
        hardest(*call)
        during = ticks[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()
    assert during > 0
    assert torch.equal(indices, hardest_negatives(query, bank)[1])
