"""``sede bench targets``: what the CPU backend is asked to reach, and what the records say."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import records, table
from .case import BOTH, FORWARD
from .operations.erase import RULES
from .registry import SCORES

Record = dict[str, Any]

#: (B, K, D) -> least speed-up over eager.
_SHAPES = {(128, 65536, 256): 4.0, (128, 65536, 1024): 2.1, (512, 16384, 512): 2.0}
_FLOORS = ("torch.compile", "chunked torch")
_SLACK_BYTES = 8_000_000


@dataclass(frozen=True)
class Part:
    """One number of a row.

    Attributes:
        value: as measured, or None where it was not.
        least: what is asked.
        unit: words after the number.
        percent: whether it is shown as a percentage.
        above: whether it must be more than ``least``, not at least.
    """

    value: float | None
    least: float
    unit: str
    percent: bool = False
    above: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it reaches what is asked; None where it was not measured."""
        if self.value is None:
            return None
        return self.value > self.least if self.above else self.value >= self.least

    def shown(self, value: float | None) -> str:
        """The number with its unit."""
        if value is None:
            return f"{self.unit}: not run"
        number = f"{100 * value:.1f} %" if self.percent else f"{value:.2f} x"
        return f"{number} {self.unit}"

    @property
    def asked(self) -> str:
        """The least, as text."""
        if self.above and self.least == 1:
            return f"ahead of {self.unit}"
        number = f"{100 * self.least:g} %" if self.percent else f"{self.least:g} x"
        return f"≥ {number} {self.unit}"


class _Found:
    """The timed records by case."""

    def __init__(self, found: Iterable[Record]) -> None:
        self.cases: dict[tuple[Any, ...], dict[str, Record]] = {}
        for record in found:
            if record["status"] == "ok":
                group = self.cases.setdefault(records.case_key(record), {})
                group[record["implementation"]] = record

    def case(self, op: str, mode: str, dtype: str, **sizes: int) -> dict[str, Record]:
        return self.cases.get((op, mode, dtype, tuple(sizes.items())), {})


def _ours(group: dict[str, Record]) -> Record | None:
    return group.get("sede cpu")


def _ratio(group: dict[str, Record], other: str) -> float | None:
    ours, record = _ours(group), group.get(other)
    return record["median_ms"] / ours["median_ms"] if ours and record else None


def _fraction(group: dict[str, Record]) -> float | None:
    ours = _ours(group)
    return ours["fraction_of_limit"] if ours else None


def _threads(*groups: dict[str, Record]) -> str:
    """How many threads ours had, to put behind a figure."""
    counts = records.threads_of(ours for group in groups if (ours := _ours(group)))
    return f"; {counts}" if counts else ""


def _best_other(group: dict[str, Record]) -> str:
    other = table.best(group.values(), ours=False)
    return other["implementation"] if other else "eager"


def _bank_rows(found: _Found) -> Iterable[tuple[str, list[Part], str]]:
    for (batch, slots, dim), least in _SHAPES.items():
        group = found.case("info_nce", BOTH, "fp32", B=batch, K=slots, D=dim)
        parts = [
            Part(_fraction(group), 0.85, "of FMA peak", percent=True),
            Part(_ratio(group, "eager"), least, "eager"),
            *(Part(_ratio(group, name), 1, name, above=True) for name in _FLOORS),
        ]
        yield f"InfoNCE fp32, B {batch}, K {slots:,}, D {dim}", parts, _threads(group)
    for batch, slots, dim in _SHAPES:
        wide = _ours(found.case("info_nce", BOTH, "fp32", B=batch, K=slots, D=dim))
        group = found.case("info_nce", BOTH, "bf16", B=batch, K=slots, D=dim)
        half, other = _ours(group), _best_other(group)
        alike = wide and half and wide["threads"] == half["threads"]
        gain = wide["median_ms"] / half["median_ms"] if wide and half and alike else None
        parts = [
            Part(gain, 1.7, "our fp32"),
            Part(_fraction(group), 0.85, "of bf16 peak", percent=True),
            Part(_ratio(group, other), 1, f"torch's bf16 ({other})", above=True),
        ]
        yield f"InfoNCE bf16, B {batch}, K {slots:,}, D {dim}", parts, _threads(group)
    attention = "attention V=K"
    group = found.case("info_nce", BOTH, "fp32", B=128, K=4096, D=256)
    parts = [Part(_ratio(group, attention), 1, attention, above=True)]
    yield "InfoNCE fp32, B 128, K 4,096, D 256", parts, _threads(group)


def _least_lead(found: _Found) -> tuple[str, str, str, bool | None]:
    """Over all bank losses with gradients, the smallest lead over the honest floors."""
    leads = [
        (ratio, f"{name}: {_case(key, group)}")
        for key, group in found.cases.items()
        if "info_nce" in key[0] and key[1] == BOTH and "K" in dict(key[3])
        for name in _FLOORS
        if (ratio := _ratio(group, name)) is not None
    ]
    title, asked = "every bank loss of the grid, least lead", f"ahead of {' and '.join(_FLOORS)}"
    if not leads:
        return title, asked, "not run", None
    ratio, where = min(leads)
    return title, asked, f"{ratio:.2f} x {where}", ratio > 1


def _most(found: _Found, title: str, op: str, twin: str) -> tuple[str, str, str, bool | None]:
    """Over the cases of ops that begin so, the most that ours takes of its twin's time."""
    shares = [
        (1 / ratio, f"{name}: {_case(key, group)}")
        for key, group in found.cases.items()
        for name in (f"sede cpu, {twin}",)
        if key[0].startswith(op) and (ratio := _ratio(group, name)) is not None
    ]
    asked = f"≤ 1.1 x {twin}"
    if not shares:
        return title, asked, "not run", None
    share, where = max(shares)
    return title, asked, f"{share:.2f} x {where}", share <= 1.1


def _least_of(
    found: _Found, title: str, ops: tuple[str, ...], batch: int = 1
) -> tuple[str, str, str, bool | None]:
    """The smallest lead over eager, of all cases of some ops with at least that batch."""
    leads = [
        (ratio, _case(key, group))
        for key, group in found.cases.items()
        if key[0] in ops
        and dict(key[3])["B"] >= batch
        and (ratio := _ratio(group, "eager")) is not None
    ]
    asked = "ahead of eager"
    if not leads:
        return title, asked, "not run", None
    ratio, where = min(leads)
    return title, asked, f"{ratio:.2f} x eager: {where}", ratio > 1


def _case(key: tuple[Any, ...], group: dict[str, Record]) -> str:
    op, _, dtype, sizes = key
    shape = ", ".join(f"{name} {value:,}" for name, value in sizes)
    return f"{op} {dtype}, {shape}{_threads(group)}"


def _fragment_rows(found: _Found) -> Iterable[tuple[str, list[Part], str]]:
    for direction in ("t2i", "i2t"):
        group = found.case(f"scan_{direction}", BOTH, "fp32", B=128, C=128, R=36, L=20, D=1024)
        parts = [
            Part(_ratio(group, "caption loop"), 12, "the caption loop"),
            Part(_ratio(group, "eager"), 1.5, "the batched Gram form"),
        ]
        yield f"SCAN {direction}, B = C = 128, R 36, D 1024", parts, _threads(group)
    for rule in RULES:
        short = found.case(f"erase_{rule}", FORWARD, "fp32", N=65536, L=36)
        long = found.case(f"erase_{rule}", BOTH, "fp32", N=1024, L=4096)
        parts = [
            Part(_ratio(short, "eager"), 3, "eager on rows of 36"),
            Part(_ratio(long, "eager"), 3, "eager on rows of 4,096 with gradient"),
        ]
        yield f"erase {rule}", parts, _threads(short, long)


def _memory_row(found: _Found) -> tuple[str, str, str, bool | None]:
    """The loss's extra memory against its bound, at the case that comes closest to it."""
    shares: list[tuple[float, str]] = []
    for key, group in found.cases.items():
        ours = _ours(group)
        if key[:2] != ("info_nce", BOTH) or ours is None or ours["extra_peak_mb"] is None:
            continue
        extra, bound = ours["extra_peak_mb"], (8 * ours["sizes"]["B"] * ours["sizes"]["D"]) / 1e6
        bound += _SLACK_BYTES / 1e6
        shares.append((extra / bound, f"{extra:.1f} of {bound:.1f} MB: {_case(key, group)}"))
    title = "extra memory of InfoNCE, case nearest its bound"
    asked = "≤ 2 B D floats + 8 MB at any K"
    if not shares:
        return title, asked, "not run", None
    share, text = max(shares)
    return title, asked, text, share <= 1


def rows(found: Iterable[Record]) -> list[tuple[str, str, str, bool | None]]:
    """(case, asked, measured, met) of every target; None: some number was not measured."""
    timed = _Found(found)
    listed = []
    for title, parts, threads in (*_bank_rows(timed), *_fragment_rows(timed)):
        met = [part.met for part in parts]
        verdict = False if False in met else None if None in met else True
        asked = ", ".join(part.asked for part in parts)
        text = ", ".join(part.shown(part.value) for part in parts) + threads
        listed.append((title, asked, text, verdict))
    cliffs = [
        _most(timed, "a queue lying as (D, K), most time", "info_nce_queue", "rows"),
        _least_of(timed, "hardest negatives of the grid, least lead", ("hardest",)),
        _least_of(timed, "losses of given scores, least lead", SCORES),
        _least_of(timed, "in-batch negatives alone, B ≥ 64, least lead", ("info_nce_batch",), 64),
        _most(timed, "one image with one caption, most time", "one_pair", "chosen pair"),
    ]
    return [*listed, _least_lead(timed), *cliffs, _memory_row(timed)]


def markdown(found: Iterable[Record]) -> str:
    """The rows as a table."""
    words = {True: "yes", False: "**no**", None: "not run"}
    lines = ["| case | asked | measured | met |", "|---|---|---|---|"]
    lines += [f"| {a} | {b} | {c} | {words[met]} |" for a, b, c, met in rows(found)]
    return "\n".join(lines)


def main(argv: list[str], results: Path) -> int:
    """Print the targets of the CPU backend beside the newest runs, one table a device."""
    parser = argparse.ArgumentParser(prog="sede bench targets", description=main.__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files or folders [all results]")
    arguments = parser.parse_args(argv)
    found = records.load(arguments.results or [results])
    latest = [r for r in records.latest(found).values() if r["driver"] is None]
    for device in dict.fromkeys(r["device"] for r in latest):
        print(device, markdown(r for r in latest if r["device"] == device), sep="\n\n")
    return 0
