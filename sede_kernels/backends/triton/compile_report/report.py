"""What the compiler makes of every kernel: registers, spills, shared memory, matrix units.

``python -m sede_kernels.backends.triton.compile_report`` compiles every configuration of every
launch table for every architecture class, without a GPU, and prints the table. ``--write
records/compiler`` keeps it as ``triton_resources.json`` and ``triton_resources.md``; only what
changed since, Triton included, is compiled again.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import Case, cases, served
from sede_kernels.backends.triton.compile_report.resources import Resources, compile_case, faults
from sede_kernels.whole_file import write_text

JSON_NAME, TABLE_NAME = "triton_resources.json", "triton_resources.md"
Rows = dict[str, dict[str, Any]]
_HEAD = """# Resources of the Triton kernels

Written by `python -m sede_kernels.backends.triton.compile_report` with Triton {triton}: launch
configurations, compiled for the architecture classes that it serves and disassembled. No GPU was
involved, so this says nothing of time. Instructions are counted in the code, not as executed. See
docs/backends.md.

"""


def load(folder: Path) -> Rows:
    """The committed rows, case key -> digest and resources; empty without a file."""
    path = folder / JSON_NAME
    rows: Rows = json.loads(path.read_text())["cases"] if path.exists() else {}
    return rows


def reusable(folder: Path) -> Rows:
    """The committed rows where the installed Triton made them: another one compiles otherwise."""
    path = folder / JSON_NAME
    if not path.exists() or json.loads(path.read_text())["triton"] != triton.__version__:
        return {}
    return load(folder)


def resources(row: dict[str, Any]) -> Resources:
    """The resources of a row."""
    return Resources(**{name: row[name] for name in Resources.__dataclass_fields__})


def _compile(key: str) -> tuple[str, dict[str, int] | str]:
    """In a worker: the resources of a case, or the compiler's error."""
    case = next(case for case in cases() if case.key == key)
    try:
        return key, compile_case(case).as_dict()
    except Exception as error:
        return key, f"{type(error).__name__}: {error}"


def collect(
    wanted: list[Case], known: Rows, processes: int, keep: Callable[[Rows], None]
) -> tuple[Rows, list[str]]:
    """Rows of the wanted cases, compiled where their digest is new, and the compiler's errors.

    ``keep`` gets the rows so far now and then: an interrupted run goes on where it was.
    """
    digests = {case.key: case.digest for case in wanted}
    rows = {key: known[key] for key in digests if known.get(key, {}).get("digest") == digests[key]}
    todo = [key for key in digests if key not in rows]
    errors = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for number, (key, found) in enumerate(pool.map(_compile, todo), 1):
            print(f"[{number}/{len(todo)}] {key}", file=sys.stderr, flush=True)
            if isinstance(found, str):
                errors.append(f"{key}: {found}")
            else:
                rows[key] = {"digest": digests[key], **found}
            if number % 10 == 0:
                keep(rows)
    return {key: rows[key] for key in digests if key in rows}, errors


def table(wanted: list[Case], rows: Rows) -> str:
    """The rows as Markdown, one section an architecture class."""
    lines = []
    for architecture, capability in launch.CAPABILITY.items():
        lines += [
            f"## {architecture} (compute capability {capability / 10:.1f}, at most "
            f"{launch.SHARED_MEMORY[architecture]:,} bytes of shared memory a block)",
            "",
            "| kernel, operands, tile, warps, stages | registers | spills | shared | HGMMA | HMMA "
            "| tcgen05 | TMA loads |",
            "| --- | --: | --: | --: | --: | --: | --: | --: |",
        ]
        for case in wanted:
            if case.architecture == architecture and case.key in rows:
                used = resources(rows[case.key])
                lines.append(
                    f"| {case.name} | {used.registers} | {used.spills} | {used.shared:,} "
                    f"| {used.hgmma} | {used.hmma} | {used.tcgen05} | {used.utmaldg} |"
                )
        lines.append("")
    return "\n".join(lines)


def problems(wanted: list[Case], rows: Rows) -> list[str]:
    """What may not ship: faults of a row, and cases without a current row."""
    found = []
    for case in wanted:
        row = rows.get(case.key)
        if row is None:
            found.append(f"{case.key}: the report has not seen it")
        elif row["digest"] != case.digest:
            found.append(f"{case.key}: changed since the report")
        else:
            found += [f"{case.key}: {fault}" for fault in faults(case, resources(row))]
    return found


def write(folder: Path, wanted: list[Case], rows: Rows) -> None:
    """The two files, one case a line so that changes are readable."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    text = f'{{"triton": "{triton.__version__}", "cases": {{\n{lines}\n}}}}\n'
    write_text(folder / JSON_NAME, text)
    write_text(folder / TABLE_NAME, _HEAD.format(triton=triton.__version__) + table(wanted, rows))


def main(arguments: list[str] | None = None) -> int:
    """Compile, print and, on request, write; 1 when something may not ship."""
    parser = argparse.ArgumentParser(prog="python -m sede_kernels.backends.triton.compile_report")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the table in this folder")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose key holds TEXT")
    parser.add_argument(
        "--defaults", action="store_true", help="only what the installed Triton runs untuned"
    )
    parser.add_argument("--skip", metavar="TEXT", help="not the cases whose key holds TEXT")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    listed = [
        case
        for case in (served(cases()) if chosen.defaults else cases())
        if chosen.skip is None or chosen.skip not in case.key
    ]
    wanted = [case for case in listed if chosen.only in case.key]
    known = reusable(chosen.write) if chosen.write else {}

    def keep(rows: Rows) -> None:
        if chosen.write:
            both = {**known, **rows}
            write(chosen.write, listed, {c.key: both[c.key] for c in listed if c.key in both})

    rows, errors = collect(wanted, known, chosen.processes, keep)
    keep(rows)
    print(table(wanted, rows))
    found = errors + problems(wanted, rows)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
