"""Runs cases: draw, check, weigh memory, time interleaved, record."""

import gc
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels import BackendUnavailableError

from . import machine, records
from .case import Case, Inputs, Operation, Run, Variant, Work
from .check import Checker, Verdict
from .limits import Limits
from .measure import Timing, interleave
from .memory import Memory, Peak, device_peak, out_of_memory
from .peers.packages import DISTRIBUTIONS
from .registry import OPERATIONS

_ROTATE_OVER = 3  # input sets together fill the last-level cache so many times
_MOST_SETS = 32

Record = dict[str, Any]


@dataclass
class _Entry:
    """One variant on its way to a record."""

    variant: Variant
    status: str = "ok"
    reason: str | None = None
    run: Run | None = None
    verdict: Verdict | None = None
    peak: Peak | None = None
    timing: Timing | None = None


def nbytes(value: object) -> int:
    """Bytes of all tensors in an input set."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, nn.Module):
        return sum(nbytes(buffer) for buffer in value.buffers())
    if isinstance(value, dict):
        return sum(nbytes(item) for item in value.values())
    return 0


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")


class Runner:
    """Measures cases on one device.

    Args:
        device: where.
        limits: of this machine, measured in this run.
        out: the JSON-lines file to append to.
        run: id of the run.
        seed: of the inputs; a fresh one each run unless asked.
        budget_s: seconds of timing a case.
        memory: measures peaks in processes of their own; None on a GPU, or to leave it out.
        only: names of implementations to keep; empty for all.
        fresh_limits: measure the limits again before each case, and keep the best.
    """

    def __init__(
        self,
        device: torch.device,
        limits: Limits,
        out: Path,
        *,
        run: str,
        seed: int,
        budget_s: float,
        memory: Memory | None,
        only: frozenset[str] = frozenset(),
        fresh_limits: bool = False,
    ) -> None:
        self.device, self.limits, self.out = device, limits, out
        self.run, self.seed, self.budget_s = run, seed, budget_s
        self.memory, self.only, self.fresh_limits = memory, only, fresh_limits
        self.facts = machine.facts(device)
        self.cache_bytes = machine.last_level_cache(device)
        self._told_absent: set[tuple[str, str]] = set()

    def case(self, case: Case) -> list[Record]:
        """Measure all variants of a case; the records are on disk when this returns."""
        operation = OPERATIONS[case.op]
        missing = operation.absent(case, self.device)
        if missing is not None:
            entry = _Entry(Variant("all", "peer", _unbuildable), "absent", missing)
            return self._write(case, operation.work(case), [entry], 0)
        if self.fresh_limits:
            self.limits.again(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        sets = [operation.draw(case, self.device, generator)]
        count = math.ceil(_ROTATE_OVER * self.cache_bytes / max(1, nbytes(sets[0])))
        for _ in range(min(_MOST_SETS, count) - 1):
            sets.append(operation.draw(case, self.device, generator))
        checker = Checker(operation, case, sets[0])
        entries = [_Entry(variant) for variant in self._wanted(operation, case)]
        for entry in entries:
            entry.reason = entry.variant.absent(case, self.device)
            entry.status = "ok" if entry.reason is None else "absent"
        present = [entry for entry in entries if entry.status == "ok"]
        self._weigh(present, case)
        for entry in present:
            if entry.status == "ok":
                self._prepare(entry, case, sets, checker)
        runs = {e.variant.name: e.run for e in entries if e.run is not None}
        timings = interleave(runs, self.device, self.budget_s) if runs else {}
        for entry in entries:
            entry.timing = timings.get(entry.variant.name)
            entry.run = None
        found = self._write(case, operation.work(case), entries, len(sets))
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _wanted(self, operation: Operation, case: Case) -> Iterable[Variant]:
        for variant in operation.variants(case):
            if case.only and variant.name not in case.only:
                continue
            if not self.only or variant.name in self.only:
                yield variant

    def _prepare(self, entry: _Entry, case: Case, sets: list[Inputs], checker: Checker) -> None:
        """Build and check; what fails leaves its reason in the entry."""
        variant = entry.variant
        try:
            run = variant.build(case, sets)
            entry.verdict = checker.verdict(variant, run(0))
            if not entry.verdict.passed:
                entry.status, entry.reason = "wrong", "error against fp64 above its budget"
                return
            if self.device.type == "cuda":
                entry.peak = device_peak(run, self.device)
            entry.run = run
        except BackendUnavailableError as error:
            entry.status, entry.reason = "absent", _why_absent(str(error))
        except Exception as error:  # a peer may raise anything; it becomes its record
            entry.status = "out of memory" if out_of_memory(error) else "error"
            entry.reason = _first_line(error)

    def _weigh(self, entries: list[_Entry], case: Case) -> None:
        """Peak memory in processes of their own; a variant that fails there goes no further."""
        if self.memory is None or self.device.type != "cpu":
            return
        peaks = self.memory.peaks(case, [entry.variant.name for entry in entries])
        for entry in entries:
            entry.peak = peak = peaks[entry.variant.name]
            if peak.status == "ok":
                continue
            entry.status, entry.reason = peak.status, peak.source
            if "BackendUnavailableError" in peak.source:
                entry.status, entry.reason = "absent", _why_absent(peak.source)

    def _write(self, case: Case, work: Work, entries: list[_Entry], sets: int) -> list[Record]:
        written = []
        for entry in entries:
            name = entry.variant.name
            if entry.status == "absent":
                # Once a run and op is enough: absences do not depend on the size.
                if (case.op, name) in self._told_absent:
                    continue
                self._told_absent.add((case.op, name))
            record = self._record(case, work, entry, sets)
            records.append(self.out, record)
            written.append(record)
        return written

    def _record(self, case: Case, work: Work, entry: _Entry, sets: int) -> Record:
        timing, verdict, peak = entry.timing, entry.verdict, entry.peak
        limit_ms = self.limits.least_ms(work, case.dtype)
        rate = self.limits.matrix[case.dtype] if work.flops is not None else None
        distribution = DISTRIBUTIONS.get(entry.variant.name, ("", ""))[1]
        fraction = limit_ms / timing.median if timing and limit_ms is not None else None
        return {
            "schema": records.SCHEMA,
            "run": self.run,
            "utc": machine.utc_now(),
            "op": case.op,
            "implementation": entry.variant.name,
            "kind": entry.variant.kind,
            "mode": case.mode,
            "dtype": case.dtype,
            "sizes": dict(case.sizes),
            "status": entry.status,
            "reason": entry.reason,
            "median_ms": timing.median if timing else None,
            "p20_ms": timing.p20 if timing else None,
            "p80_ms": timing.p80 if timing else None,
            "repeats": timing.repeats if timing else 0,
            "input_sets": sets,
            "seed": self.seed,
            "error": _finite(verdict.worst) if verdict else None,
            "errors": {k: _finite(v) for k, v in verdict.errors.items()} if verdict else {},
            "budgets": verdict.budgets if verdict else {},
            "passed": verdict.passed if verdict else None,
            "flops_formula": work.flops_formula,
            "flops": work.flops,
            "bytes_formula": work.bytes_formula,
            "bytes": work.moved,
            "matrix_gflops": rate.value if rate else None,
            "matrix_rate_of": rate.of if rate else "not needed",
            "copy_gbs": self.limits.copy.value,
            "limit_ms": limit_ms,
            "fraction_of_limit": fraction,
            "extra_peak_mb": peak.extra_mb if peak else None,
            "memory_from": peak.source if peak else "not measured",
            "load_average": machine.load_average(),
            "peer_version": machine.package_version(distribution) if distribution else None,
            **self.facts,
        }


def _why_absent(message: str) -> str:
    """The clause of a BackendUnavailableError that says what is missing."""
    line = message.splitlines()[0].removesuffix(" Backends here:").rstrip(".")
    return line.partition("was asked for but ")[2] or line


def _finite(value: float) -> float | None:
    """JSON has no infinity: None says that the result was not comparable at all."""
    return value if math.isfinite(value) else None


def _unbuildable(case: Case, sets: list[Inputs]) -> Run:
    raise RuntimeError("stands for all variants of an op that cannot be measured here")


def shrunk(case: Case) -> Case:
    """The same case at sizes for a smoke test: everything runs, no time means anything."""
    most = {"B": 8, "C": 6, "K": 512, "D": 32, "R": 6, "L": 16, "F": 16, "N": 48, "k": 5}
    sizes = {name: min(value, most[name]) for name, value in case.sizes.items()}
    if case.op.startswith("train_step"):
        sizes["K"] = 32
    return Case(case.op, case.mode, case.dtype, sizes, case.only)
