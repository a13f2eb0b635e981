"""``python -m tests.ptx.summary``: the committed records as the tables of docs/ptx.md.

``--write docs/ptx.md`` puts them in the place of those that are there.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ptx import suites
from tests.ptx.kernels import record
from tests.ptx.machine import speed
from tests.ptx.mutation import score


def _executed(lines: list[dict[str, Any]], version: str) -> Iterator[str]:
    for architecture in record.ARCHITECTURES:
        of = [x for x in lines if (x["triton"], x["architecture"]) == (version, architecture)]
        if of:
            kernels = {name for line in of for name in line["kernels"]}
            worst = max(of, key=lambda line: line["worst_share_of_budget"])
            harmless = sorted({kind for line in of for kind in line["faults"]})
            yield (
                f"| {version} | {architecture} | {len(of)} | {len(kernels)} "
                f"| {sum(line['warp_instructions'] for line in of) / 1e6:.0f} M "
                f"| {worst['worst_share_of_budget']:.2f} ({worst['problem']}) "
                f"| {', '.join(harmless) or 'none'} |"
            )


def executed() -> Iterator[str]:
    """A row for each version of Triton and architecture: what ran, and how far from fp64."""
    lines = record.load(record.FOLDER)
    yield (
        "| Triton | class | problems x entries | kernels | warp instructions "
        "| largest error in budgets | faults, all harmless |"
    )
    yield "| --- | --- | --: | --: | --: | --- | --- |"
    for version in reversed(record.versions(lines)):
        yield from _executed(lines, version)


def others() -> Iterator[str]:
    """A row for each architecture: the interpreter's and the GPU's tests."""
    yield "| tests/interpret and tests/gpu | files | passed | skipped | failed | minutes |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for architecture in suites.ARCHITECTURES:
        of = [x for x in suites.load(suites.FILE) if x["architecture"] == architecture]
        yield (
            f"| {architecture} | {len(of)} | {sum(line['passed'] for line in of)} "
            f"| {sum(line['skipped'] for line in of)} | {sum(len(line['failed']) for line in of)} "
            f"| {sum(line['seconds'] for line in of) / 60:.0f} |"
        )


def mutations() -> Iterator[str]:
    """A row for each group of faults that were put in."""
    lines = score.load(score.FILE)
    yield "| faults put in | number | noticed | change nothing | missed |"
    yield "| --- | --: | --: | --: | --: |"
    for group in (*score.GROUPS, None):
        of = [line for line in lines if group in (None, line["group"])]
        noticed = sum(bool(line["noticed"]) for line in of)
        same = sum("equivalent" in line for line in of)
        missed = len(of) - noticed - same
        yield f"| {group or 'all'} | {len(of)} | {noticed} | {same} | {missed} |"


def speeds() -> Iterator[str]:
    """A row for each kind of instruction."""
    measured = json.loads((record.FOLDER / speed.NAME).read_text())
    yield "| million warp instructions a second | one core | every core |"
    yield "| --- | --: | --: |"
    for name, (one, every) in measured["million_warp_instructions_a_second"].items():
        yield f"| {name} | {one:.1f} | {every:.1f} |"


TABLES: tuple[Callable[[], Iterator[str]], ...] = (executed, others, mutations, speeds)


def replaced(text: str, table: list[str]) -> str:
    """A page with another table of the same head.

    Raises:
        ValueError: no table of the page has this head.
    """
    lines = text.splitlines()
    if table[0] not in lines:
        raise ValueError(f"The page has no table with the head {table[0]!r}.")
    first = last = lines.index(table[0])
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    return "\n".join([*lines[:first], *table, *lines[last:]]) + "\n"


def main() -> None:
    """Print them, and put them into a page."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.summary", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with these tables")
    page = parser.parse_args().write
    for rows in TABLES:
        table = list(rows())
        print("\n".join(table), end="\n\n")
        if page is not None:
            page.write_text(replaced(page.read_text(), table))


if __name__ == "__main__":
    main()
