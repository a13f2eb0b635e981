"""Results as JSON lines: appended whole, checked on reading, nothing dropped in silence."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sede_kernels import jsonl

SCHEMA = 1
STATUSES = ("ok", "wrong", "out of memory", "error", "absent")

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))

#: Field -> allowed types. Every record has all of them.
FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "run": (str,),  # one id for all records of a run
    "utc": (str,),
    "op": (str,),
    "implementation": (str,),
    "kind": (str,),
    "mode": (str,),
    "dtype": (str,),
    "sizes": (dict,),
    "status": (str,),
    "reason": (str, type(None)),
    "median_ms": _OPTIONAL_NUMBER,
    "p20_ms": _OPTIONAL_NUMBER,
    "p80_ms": _OPTIONAL_NUMBER,
    "repeats": (int,),
    "input_sets": (int,),
    "seed": (int,),
    "error": _OPTIONAL_NUMBER,
    "errors": (dict,),
    "budgets": (dict,),
    "passed": (bool, type(None)),
    "flops_formula": (str,),
    "flops": _OPTIONAL_NUMBER,
    "bytes_formula": (str,),
    "bytes": _OPTIONAL_NUMBER,
    "matrix_gflops": _OPTIONAL_NUMBER,
    "matrix_rate_of": (str,),
    "copy_gbs": _NUMBER,
    "limit_ms": _OPTIONAL_NUMBER,
    "fraction_of_limit": _OPTIONAL_NUMBER,
    "extra_peak_mb": _OPTIONAL_NUMBER,
    "memory_from": (str,),
    "device": (str,),
    "driver": (str, type(None)),
    "cpu": (str,),
    "threads": (int,),
    "load_average": _OPTIONAL_NUMBER,
    "python": (str,),
    "torch": (str,),
    "triton": (str, type(None)),
    "sede_kernels": (str,),
    "peer_version": (str, type(None)),
    "git": (str,),
}


@dataclass(frozen=True)
class Problem:
    """A line that is no record.

    Attributes:
        path: the file.
        line: from 1.
        what: one clause.
    """

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def fault(record: object) -> str | None:
    """Why this is not a record of the schema, or None when it is."""
    if not isinstance(record, dict):
        return f"must be a JSON object, got {type(record).__name__}"
    if record.get("schema") != SCHEMA:
        return f"schema must be {SCHEMA}, got {record.get('schema')!r}"
    missing = sorted(FIELDS.keys() - record.keys())
    if missing:
        return f"lacks {', '.join(missing)}"
    unknown = sorted(record.keys() - FIELDS.keys())
    if unknown:
        return f"has unknown fields {', '.join(unknown)}"
    for name, types in FIELDS.items():
        value = record[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            return f"{name} must be {' or '.join(t.__name__ for t in types)}, got {value!r}"
    if record["status"] not in STATUSES:
        return f"status must be one of {', '.join(STATUSES)}, got {record['status']!r}"
    timed = record["median_ms"] is not None
    if timed != (record["status"] == "ok") or (timed and record["passed"] is not True):
        return "a time needs a passed check and status ok"
    return None


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one record to a file of JSON lines.

    Raises:
        ValueError: the record does not fit the schema.
    """
    what = fault(record)
    if what is not None:
        raise ValueError(f"benchmark record {what}.")
    jsonl.append(path, record)


def read(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Records of all files in order, and every line that is none."""
    records: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for path in paths:
        for number, record, fault_of_line in jsonl.read(path):
            what = fault_of_line or fault(record)
            if what is None:
                records.append(record)
            else:
                problems.append(Problem(path, number, what))
    return records, problems


def files_in(place: Path) -> list[Path]:
    """The JSON-lines files of a folder (or the file itself), sorted.

    Raises:
        FileNotFoundError: nothing there, with a sentence.
    """
    found = [place] if place.is_file() else sorted(place.rglob("*.jsonl"))
    if not found:
        raise FileNotFoundError(
            f"no results (*.jsonl) in {place}; run `sede bench --quick` to make some."
        )
    return found


def load(places: Iterable[Path]) -> list[dict[str, Any]]:
    """Records of files and folders, for a reader; lines that are none are told on stderr.

    Raises:
        FileNotFoundError: a place has no results.
        ValueError: their files hold no record at all.
    """
    places = list(places)
    found, problems = read([path for place in places for path in files_in(place)])
    if not found:
        where = ", ".join(map(str, places))
        raise ValueError(f"{where}: there is no record of `sede bench` in it, expected JSON lines")
    for problem in problems:
        print(f"unreadable: {problem}", file=sys.stderr)
    return found


def case_key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What was measured, whoever computed it."""
    return (record["op"], record["mode"], record["dtype"], tuple(record["sizes"].items()))


def of_most_threads(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case and device those with the most threads: what stands side by side ran alike."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((*case_key(record), record["device"]), []).append(record)
    return [
        record
        for group in groups.values()
        for record in group
        if record["threads"] == max(other["threads"] for other in group)
    ]


def latest(records: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Of each case and device the records of one run, so that what stands side by side took turns.

    It is the newest run that had ours beside something else, or else the newest that ran anything,
    whatever the files' order; absences do not hide results.
    """
    cases: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for record in sorted(records, key=lambda record: str(record["utc"])):
        runs = cases.setdefault((*case_key(record), record["device"]), {})
        runs.setdefault(record["run"], []).append(record)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for runs in cases.values():
        newest_first = reversed(runs.values())
        for record in max(newest_first, key=_kinds):
            key = (*case_key(record), record["implementation"], record["device"])
            if record["status"] != "absent" or key not in found:
                found[key] = record
    return found


def _kinds(group: list[dict[str, Any]]) -> int:
    """2 where ours ran beside something else, 1 where anything ran."""
    return len({record["kind"] == "ours" for record in group if record["status"] != "absent"})


def threads_of(records: Iterable[dict[str, Any]]) -> str:
    """On how many threads they were measured: ``1 thread``, ``1 or 2 threads``; empty for none."""
    counts = sorted({record["threads"] for record in records})
    words = " or ".join(str(count) for count in counts)
    return f"{words} {'thread' if counts == [1] else 'threads'}" if counts else ""
