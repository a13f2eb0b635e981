"""The machine's limits, measured in the run that uses them: matrix rate and copy bandwidth."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .case import DTYPES, Work
from .machine import cpu_flags

_GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
_SMALL = 256  # rows of a matrix that only shows that it runs


@dataclass(frozen=True)
class Rate:
    """A measured rate.

    Attributes:
        value: GFLOP/s or GB/s.
        of: what was run to get it.
    """

    value: float
    of: str


def _seconds(device: torch.device, call: Callable[[], object], seconds: float) -> float:
    """Best time of one call within a budget: a limit is what the machine can do, not its mean."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_rate(
    device: torch.device, dtype: torch.dtype, seconds: float = 0.4, *, small: bool = False
) -> Rate:
    """GFLOP/s of a large square matrix product by torch (without tf32)."""
    n = _SMALL if small else _GEMM_SIZE[device.type]
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty(n, n, device=device, dtype=dtype)
    best = _seconds(device, lambda: torch.mm(a, b, out=out), seconds)
    name = str(dtype).removeprefix("torch.")
    return Rate(2 * n**3 / best / 1e9, f"torch {name} matrix product, {n} x {n} x {n}")


def fma_peak(milliseconds: int = 200) -> Rate | None:
    """fp32 GFLOP/s of the register-only FMA loop of the CPU extension; None where it is absent."""
    try:
        from sede_kernels import _cpu
    except ImportError:
        return None
    peak = getattr(_cpu, "fma_peak_gflops", None)
    if peak is None:
        return None
    threads = torch.get_num_threads()
    runs = [float(peak(threads, milliseconds)) for _ in range(3)]
    counted = f"{threads} thread{'' if threads == 1 else 's'}"
    return Rate(max(runs), f"register-only fp32 FMA loop, {counted}")


def copy_bandwidth(device: torch.device, seconds: float = 0.4, *, small: bool = False) -> Rate:
    """GB/s of a large copy, bytes read plus bytes written."""
    count = _SMALL**2 if small else _COPY_BYTES[device.type] // 4
    source = torch.arange(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = _seconds(device, lambda: target.copy_(source), seconds)
    return Rate(2 * 4 * count / best / 1e9, f"copy of {count * 4 / 2**20:g} MiB")


@dataclass
class Limits:
    """Limits of one machine at one time.

    Attributes:
        matrix: dtype name -> rate of its arithmetic.
        copy: memory bandwidth.
    """

    matrix: dict[str, Rate]
    copy: Rate

    def least_ms(self, work: Work, dtype: str) -> float | None:
        """max(arithmetic / matrix rate, bytes / bandwidth); None without a formula."""
        floors = []
        if work.flops is not None:
            floors.append(work.flops / self.matrix[dtype].value / 1e6)
        if work.moved is not None:
            floors.append(work.moved / self.copy.value / 1e6)
        return max(floors, default=None)

    def again(self, device: torch.device) -> None:
        """Measure once more and keep the better: a busy moment must not lower a limit."""
        fresh = measure(device, set(self.matrix), seconds=0.1)
        for name, rate in fresh.matrix.items():
            if rate.value > self.matrix[name].value:
                self.matrix[name] = rate
        if fresh.copy.value > self.copy.value:
            self.copy = fresh.copy


def measure(
    device: torch.device, dtypes: set[str], seconds: float = 0.4, *, small: bool = False
) -> Limits:
    """The limits that the dtypes of a run need; about a second each. ``small``: as a smoke test.

    On a CPU: the FMA peak of its registers (twice that for bf16 where the processor multiplies
    pairs with vdpbf16ps), or torch's matrix product where the extension is not built. An int8 bank
    is multiplied in the dtype of its queries: fp32 on a CPU, and bf16 on a GPU's matrix units.
    """
    rates: dict[str, Rate] = {}
    peak = fma_peak(round(500 * seconds)) if device.type == "cpu" else None
    for name in sorted(dtypes):
        if device.type == "cpu" and name in ("fp32", "int8", "fp16"):
            rates[name] = peak or gemm_rate(device, torch.float32, seconds, small=small)
        elif device.type == "cpu" and peak and "avx512_bf16" in cpu_flags():
            rates[name] = Rate(2 * peak.value, f"2 x {peak.of} (vdpbf16ps)")
        else:
            dtype = torch.bfloat16 if name == "int8" else DTYPES[name]
            rates[name] = gemm_rate(device, dtype, seconds, small=small)
    return Limits(rates, copy_bandwidth(device, seconds, small=small))
