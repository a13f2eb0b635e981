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
from .measure import CallError, Timing, interleave
from .memory import Memory, Peak, device_peak, out_of_memory
from .peers.packages import DISTRIBUTIONS
from .registry import OPERATIONS
from .resume import DeviceLostError, Progress, is_lost

_ROTATE_OVER = 3  # input sets together fill the last-level cache so many times

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
        seed: of the inputs; a fresh one each run unless asked.
        budget_s: seconds of timing a case.
        memory: measures peaks in processes of their own; None on a GPU, or to leave it out.
        only: names of implementations to keep; empty for all.
        fresh_limits: measure the limits again before each case, and keep the best.
        progress: id of the run, what of it is done, and where it is.
    """

    def __init__(
        self,
        device: torch.device,
        limits: Limits,
        out: Path,
        *,
        seed: int,
        budget_s: float,
        memory: Memory | None,
        only: frozenset[str] = frozenset(),
        fresh_limits: bool = False,
        progress: Progress,
    ) -> None:
        self.device, self.limits, self.out = device, limits, out
        self.seed, self.budget_s = seed, budget_s
        self.memory, self.only, self.fresh_limits = memory, only, fresh_limits
        self.progress = progress
        self.facts = machine.facts(device)
        self.cache_bytes = machine.last_level_cache(device)
        self._told_absent: set[tuple[str, str]] = set()

    def case(self, case: Case) -> list[Record]:
        """Measure all variants of a case; the records are on disk when this returns.

        Raises:
            DeviceLostError: a variant has left the GPU in a state that only a new process ends.
        """
        operation = OPERATIONS[case.op]
        if self.progress.done(case) and not list(self._wanted(operation, case)):
            return []
        self.progress.at(case)
        missing = operation.absent(case, self.device)
        if missing is not None:
            entry = _Entry(Variant("all", "peer", _unbuildable), "absent", missing)
            return self._write(case, operation.work(case), [entry], 0)
        if self.fresh_limits:
            self.limits.again(self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        sets = [operation.draw(case, self.device, generator)]
        count = math.ceil(_ROTATE_OVER * self.cache_bytes / max(1, nbytes(sets[0])))
        for _ in range(min(operation.most_sets(self.device), count) - 1):
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
        self._time(case, entries)
        found = self._write(case, operation.work(case), entries, len(sets))
        self.progress.between()
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return found

    def _time(self, case: Case, entries: list[_Entry]) -> None:
        """Time what is ready; what fails now, on another input set, leaves its reason."""
        ready = {entry.variant.name: entry for entry in entries if entry.run is not None}
        while ready:
            self.progress.at(case)
            runs = {name: entry.run for name, entry in ready.items() if entry.run}
            try:
                timings = interleave(runs, self.device, self.budget_s)
            except CallError as error:
                self.progress.at(case, error.name)
                self._failed(ready.pop(error.name), error.reason)
                continue
            for name, entry in ready.items():
                entry.timing = timings[name]
            break
        for entry in entries:
            entry.run = None

    def _failed(self, entry: _Entry, error: BaseException) -> None:
        """A peer may raise anything; it becomes its record, unless the GPU is lost with it."""
        entry.status = "out of memory" if out_of_memory(error) else "error"
        entry.reason = _first_line(error)
        if is_lost(self.device):
            raise DeviceLostError(entry.reason) from error

    def broken(self, cases: Iterable[Case]) -> list[Record]:
        """Write what the process before this one was at when it ended, if it did not end well."""
        title, name = self.progress.broken
        written: list[Record] = []
        for case in (case for case in cases if case.title == title):
            operation = OPERATIONS[case.op]
            entries = [
                _Entry(variant, "error", "the process ended while it ran; the log says where")
                for variant in self._wanted(operation, case)
                if name in ("", variant.name)
            ]
            written += self._write(case, operation.work(case), entries, 0)
            self.progress.leave_out(case, {entry.variant.name for entry in entries})
        self.progress.between()
        return written

    def _wanted(self, operation: Operation, case: Case) -> Iterable[Variant]:
        done = self.progress.done(case)
        for variant in operation.variants(case):
            if case.only and variant.name not in case.only:
                continue
            if variant.name in done:
                continue
            if not self.only or variant.name in self.only:
                yield variant

    def _prepare(self, entry: _Entry, case: Case, sets: list[Inputs], checker: Checker) -> None:
        """Build and check; what fails leaves its reason in the entry."""
        variant = entry.variant
        self.progress.at(case, variant.name)
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
        except Exception as error:
            self._failed(entry, error)

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
            "run": self.progress.run,
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
