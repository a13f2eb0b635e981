"""Runs problems on the machine: the entry of a launch table that was asked for, and no other."""

import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

import torch

from sede_kernels.backends import triton as backend
from sede_kernels.backends.triton import launch
from tests.ptx.kernels.problem import Check, Problem
from tests.ptx.machine import driver

#: Modules with a ``problems()`` each.
MODULES = ("bank", "rows", "info_nce", "scores", "attention")
#: Share of a kernel's instructions that a problem must reach.
_LEAST_EXECUTED = 0.5


@cache
def problems() -> tuple[Problem, ...]:
    """All of them."""
    listed = [import_module(f"tests.ptx.kernels.{name}").problems() for name in MODULES]
    return tuple(problem for some in listed for problem in some)


def entries_of(
    problem: Problem, architecture: str, version: str | None = None
) -> list[dict[str, launch.Config]]:
    """Table -> entry, for every entry; a table with fewer of them repeats its last.

    ``version``: of Triton; the installed one for None.
    """
    rows = {
        name: [
            launch.Config(*entry)
            for entry in launch.table(name, version)[key].get(architecture, [])
        ]
        for name, key in problem.rows
    }
    if not all(rows.values()):
        return []
    most = max((len(row) for row in rows.values()), default=1)
    return [{name: row[min(n, len(row) - 1)] for name, row in rows.items()} for n in range(most)]


@dataclass
class Outcome:
    """What came out of a problem with some entries."""

    problem: Problem
    architecture: str
    entries: dict[str, launch.Config]
    kernels: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    instructions: int = 0
    executed: dict[str, float] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def harmful(self) -> list[str]:
        """What is wrong: an exception, faults that count, results beyond their budgets."""
        found = [self.error, *self.texts] if self.error else list(self.texts)
        found += [
            f"{check.name}: error {check.error:.3g}, budget {check.budget:.3g}"
            for check in self.checks
            if not check.share <= 1.0
        ]
        if self.problem.every_pass:
            found += [
                f"{name}: only {share:.0%} of the instructions ran"
                for name, share in self.executed.items()
                if share < _LEAST_EXECUTED
            ]
        return found


@contextmanager
def _forced(problem: Problem, entries: dict[str, launch.Config]) -> Iterator[set[tuple[str, str]]]:
    """The host takes these entries; yields the rows that it asked for."""
    keys, original = dict(problem.rows), launch.candidates
    asked: set[tuple[str, str]] = set()

    def candidates(kernel: str, key: str, architecture: str) -> list[launch.Config]:
        asked.add((kernel, key))
        usual = original(kernel, key, architecture)
        return [entries[kernel]] if keys.get(kernel) == key else usual

    launch.candidates = candidates
    try:
        yield asked
    finally:
        launch.candidates = original


def execute(problem: Problem, architecture: str, entries: dict[str, launch.Config]) -> Outcome:
    """Run it; the driver must be installed for the architecture."""
    outcome = Outcome(problem, architecture, entries)
    statistics = driver.state.statistics = driver.Statistics()
    before = torch.get_float32_matmul_precision()
    torch.manual_seed(zlib.crc32(problem.name.encode()))
    torch.set_float32_matmul_precision("high" if "tf32" in problem.name else "highest")
    backend.emulate(backend.Emulation(architecture, problem.cores))
    started = time.perf_counter()
    try:
        with _forced(problem, entries) as asked:
            outcome.checks = list(problem.call(entries))
        missing = set(problem.rows) - asked
        if missing:
            outcome.error = f"the call took other rows than {sorted(missing)}"
    except Exception:
        outcome.error = traceback.format_exc(limit=-3)
    finally:
        torch.set_float32_matmul_precision(before)
    outcome.seconds = time.perf_counter() - started
    outcome.compile_seconds = statistics.compile_s
    outcome.kernels = dict(sorted(statistics.kernels.items()))
    outcome.instructions = statistics.executed
    outcome.executed = _executed(statistics)
    outcome.faults = Counter(fault.kind for _, fault in statistics.faults)
    outcome.texts = [
        f"{name}: {fault}"
        for name, fault in statistics.faults
        if fault.kind not in driver.TOLERATED
    ]
    return outcome


def _executed(statistics: driver.Statistics) -> dict[str, float]:
    """Kernel -> the smallest share of its instructions that ran, over its compiled texts."""
    shares: dict[str, float] = {}
    for digest, name in statistics.modules.items():
        ran = driver.loaded(digest).coverage(name)
        shares[name] = min(shares.get(name, 1.0), sum(ran.values()) / len(ran))
    return dict(sorted(shares.items()))


def run(
    architecture: str,
    *,
    every: bool,
    wanted: Callable[[Problem, dict[str, launch.Config]], bool],
    keep: Callable[[Outcome], None],
) -> None:
    """Of every problem that is wanted the first entries, or each."""
    driver.install(architecture)
    driver.state.strict = False
    for problem in problems():
        for entries in entries_of(problem, architecture)[: None if every else 1]:
            if wanted(problem, entries):
                keep(execute(problem, architecture, entries))
