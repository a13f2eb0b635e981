"""Draws faults, runs the problem of each with it, and keeps what noticed it."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton

from sede_kernels.backends.triton import launch
from tests.ptx.kernels.execute import entries_of, execute, problems
from tests.ptx.kernels.problem import Problem
from tests.ptx.kernels.record import line_of, worse
from tests.ptx.machine import driver
from tests.ptx.mutation.faults import GROUPS, KINDS, Fault, Kind, faults_of

ARCHITECTURES = ("sm_80", "sm_90")
#: Problems whose kernels get faults: quick ones.
PROBLEMS = (
    "bank_lse 128/lean", "bank_lse 256/full", "bank_lse step/tf32", "bank_lse_pair 256/static",
    "chunks half", "chunks tf32", "batch_lse half", "hardest half", "erase 64", "enqueue int8",
    "cross_attention half/32", "cross_attention_pairs half/32x32",
)  # fmt: skip
#: A kernel that many problems launch -> problems that show more of it.
_ALSO = {"_bank_lse_combine_kernel": ("bank_lse 128/lean many", "bank_lse 256/full many")}
#: Of a problem on an architecture: 360 in all.
EACH = 15
_SEED = 20
FILE = Path(__file__).parents[3] / "records" / "ptx" / "mutations.jsonl"
#: A block that runs much longer than any of these does not end.
_STEP_LIMIT = 3000
Entries = dict[str, launch.Config]


@dataclass(frozen=True)
class Target:
    """A compiled kernel, executed without a fault."""

    kernel: str
    text: str
    executed: frozenset[int]


Drawn = tuple[Target, Fault]


def digest(text: str) -> str:
    """Of a text; its first twelve digits are in the table."""
    return hashlib.sha256(text.encode()).hexdigest()


Errors = dict[str, list[float]]


def targets(problem: Problem, architecture: str, entries: Entries) -> tuple[list[Target], Errors]:
    """The kernels of a problem, by running it, and the errors of its results.

    Raises:
        RuntimeError: something is wrong already.
    """
    texts: dict[str, tuple[str, str]] = {}

    def seen(name: str, text: str) -> str:
        texts[digest(text)] = name, text
        return text

    driver.state.rewrite = seen
    try:
        outcome = execute(problem, architecture, entries)
    finally:
        driver.state.rewrite = None
    if outcome.harmful:
        raise RuntimeError(f"{problem.name} on {architecture}: {outcome.harmful}")
    found: list[Target] = []
    for name, text in texts.values():
        ran = driver.module_of(name, text).coverage(name)
        found.append(Target(name, text, frozenset(line for line, did in ran.items() if did)))
    found.sort(key=lambda target: (target.kernel, target.text))
    return found, line_of(outcome)["errors"]


def drawn(
    name: str,
    architecture: str,
    found: list[Target],
    count: int,
    of: tuple[Kind, ...] = KINDS,
) -> list[Drawn]:
    """As many faults of every group as there are, a kind of it at a time."""
    source = random.Random(f"{_SEED} {name} {architecture}")
    by_group: dict[str, dict[str, list[Drawn]]] = {}
    for group in GROUPS:
        by_group[group] = defaultdict(list)
    for target in found:
        for fault in faults_of(target.text, set(target.executed), of):
            by_group[fault.kind.group][fault.kind.name].append((target, fault))
    chosen: list[Drawn] = []
    while len(chosen) < count and any(by_group.values()):
        for group in GROUPS:
            kinds = by_group[group]
            if kinds and len(chosen) < count:
                kind = source.choice(sorted(kinds))
                chosen.append(kinds[kind].pop(source.randrange(len(kinds[kind]))))
                if not kinds[kind]:
                    del kinds[kind]
    return chosen


def noticed(
    problem: Problem,
    architecture: str,
    entries: Entries,
    target: Target,
    fault: Fault,
    usual: Errors,
) -> str:
    """What noticed the fault, empty for nothing.

    The kind of a machine's fault, ``raised``, ``result`` (an error beyond its budget) or ``record``
    (an error larger than the record's).
    """
    spoilt = fault.applied(target.text)

    def rewrite(name: str, text: str) -> str:
        return spoilt if text == target.text else text

    driver.state.rewrite, before = rewrite, driver.state.options
    driver.state.options = replace(before, step_limit=_STEP_LIMIT)
    driver.state.strict = True
    try:
        outcome = execute(problem, architecture, entries)
    finally:
        driver.state.rewrite, driver.state.options, driver.state.strict = None, before, False
    kinds = sorted(set(outcome.faults) - driver.TOLERATED)
    if kinds:
        return kinds[0]
    if outcome.error:
        return "raised"
    if outcome.harmful:
        return "result"
    return "record" if worse(line_of(outcome)["errors"], usual) else ""


@dataclass(frozen=True)
class Member:
    """A problem that may notice a fault, its entries, its kernels' texts and its errors."""

    problem: Problem
    entries: Entries
    texts: frozenset[str]
    usual: Errors


def _family(problem: Problem, architecture: str, kernels: set[str]) -> list[Member]:
    """A problem, those with the same row of the tables, and those that share a kernel of it."""
    shared = {name for kernel in kernels for name in _ALSO.get(kernel, ())}
    alike = [
        each
        for each in problems()
        if each.name.startswith(f"{problem.name} ") or each.name in shared - {problem.name}
    ]
    members = []
    for each in (problem, *alike):
        entries = entries_of(each, architecture)[0]
        found, usual = targets(each, architecture, entries)
        texts = frozenset(target.text for target in found)
        members.append(Member(each, entries, texts, usual))
    return members


def lines_of(problem: Problem, architecture: str, count: int = EACH) -> Iterator[dict[str, Any]]:
    """A line for each fault of a problem; it and those like it are run until one notices."""
    entries = entries_of(problem, architecture)[0]
    found, _ = targets(problem, architecture, entries)
    family = _family(problem, architecture, {target.kernel for target in found})
    for target, fault in drawn(problem.name, architecture, found, count):
        seen = (
            noticed(each.problem, architecture, each.entries, target, fault, each.usual)
            for each in family
            if target.text in each.texts
        )
        yield {
            "problem": problem.name,
            "architecture": architecture,
            "triton": triton.__version__,
            "kernel": target.kernel,
            "text": digest(target.text)[:12],
            "line": fault.line,
            "group": fault.kind.group,
            "kind": fault.kind.name,
            "instruction": " ".join(fault.before.split())[:160],
            "noticed": next((what for what in seen if what), ""),
        }


def run(architecture: str, file: Path, wanted: str) -> None:
    """Fill the file for an architecture; what was judged by hand stays with its fault."""
    driver.install(architecture)
    driver.state.strict = False
    kept = load(file)
    judged = {key_of(line): line["equivalent"] for line in kept if "equivalent" in line}
    for problem in problems():
        if problem.name not in PROBLEMS or wanted not in problem.name:
            continue
        fresh = []
        for line in lines_of(problem, architecture):
            if key_of(line) in judged and not line["noticed"]:
                line["equivalent"] = judged[key_of(line)]
            fresh.append(line)
            print(json.dumps(line), flush=True)
        place = problem.name, architecture
        others = [x for x in load(file) if (x["problem"], x["architecture"]) != place]
        write(file, [*others, *fresh])


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells faults apart."""
    return tuple(line[name] for name in ("problem", "architecture", "text", "line", "kind"))


def load(file: Path) -> list[dict[str, Any]]:
    """The committed lines."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    """One line a fault, in a fixed order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in sorted(lines, key=key_of)))
