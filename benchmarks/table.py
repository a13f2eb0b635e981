"""Tables for the terminal."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import flags
from . import records as store

Record = dict[str, Any]

# Reasons for which a backend is rightly absent.
_NEVER_HERE = ("runs on cpu only", "runs on cuda only", "not part of this version")


def _number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if value >= 1e-3 else f"{value:.0e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def render(rows: list[list[str]], left: int = 1) -> str:
    """Columns wide enough for their content; the first ``left`` are left-aligned."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def title(record: Record) -> str:
    """``info_nce forward+backward fp32 B=128 K=65,536 D=256``."""
    sizes = " ".join(f"{name}={value:,}" for name, value in record["sizes"].items())
    return f"{record['op']} {record['mode']} {record['dtype']} {sizes}"


def best(records: Iterable[Record], *, ours: bool) -> Record | None:
    """The fastest checked record of our variants, or of the others; twins are neither."""
    kinds = ("ours",) if ours else ("eager", "peer")
    timed = [r for r in records if r["status"] == "ok" and r["kind"] in kinds]
    return min(timed, key=lambda r: r["median_ms"], default=None)


def of_case(records: list[Record]) -> str:
    """All variants of one case, fastest first, failures last with their reason."""
    fastest = best(records, ours=True)
    rows = [["implementation", "ms", "p20 - p80", "x ours", "of limit", "extra MB", "error"]]
    for r in sorted(records, key=lambda r: (r["median_ms"] is None, r["median_ms"] or 0)):
        if r["status"] != "ok":
            continue
        ratio = r["median_ms"] / fastest["median_ms"] if fastest else None
        rows.append(
            [
                r["implementation"],
                _number(r["median_ms"]),
                f"{_number(r['p20_ms'])} - {_number(r['p80_ms'])}",
                "-" if ratio is None else f"{ratio:.2f}",
                _percent(r["fraction_of_limit"]),
                _number(r["extra_peak_mb"]),
                f"{r['error']:.0e}",
            ]
        )
    lines = [title(records[0])] if records else []
    lines += [render(rows)] if len(rows) > 1 else []
    for r in records:
        if r["status"] == "wrong":
            shown = ", ".join(
                f"{k} {'not finite' if e is None else format(e, '.1e')} of {r['budgets'][k]:.1e}"
                for k, e in r["errors"].items()
            )
            lines.append(f"{r['implementation']}: not timed, fails the check ({shown})")
        elif r["status"] != "ok":
            lines.append(f"{r['implementation']}: {r['status']}, {r['reason']}")
    return "\n".join(lines)


def summary(records: list[Record], most: int = 38) -> str:
    """One line a case: ours, the best of the others, eager; at most ``most`` + 2 lines."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(store.case_key(record), []).append(record)
    head = ["case", "ours", "threads", "ms", "of limit", "MB", "best other", "x", "eager x"]
    rows = [[*head, "eager MB"]]
    left_out = 0
    for group in groups.values():
        ours, other = best(group, ours=True), best(group, ours=False)
        if ours is None and other is None:
            continue
        if len(rows) > most:
            left_out += 1
            continue
        eager = next((r for r in group if r["kind"] == "eager" and r["status"] == "ok"), None)
        base = ours["median_ms"] if ours else None
        rows.append(
            [
                _short(group[0]),
                ours["implementation"].removeprefix("sede ") if ours else "not run",
                str((ours or group[0])["threads"]),
                _number(base),
                _percent(ours["fraction_of_limit"] if ours else None),
                _number(ours["extra_peak_mb"] if ours else None),
                other["implementation"] if other else "-",
                f"{other['median_ms'] / base:.2f}" if other and base else "-",
                f"{eager['median_ms'] / base:.2f}" if eager and base else "-",
                _number(eager["extra_peak_mb"] if eager else None),
            ]
        )
    lines = [render(rows, left=2)]
    lines += [f"... and {left_out} more cases in the results file"] if left_out else []
    lines += [f"measured without {name}: {reason}" for name, reason in gaps(records).items()]
    return "\n".join(lines)


def gaps(records: list[Record]) -> dict[str, str]:
    """Implementations of ours that these records wanted and nowhere have, with the reasons."""
    ours = [r for r in records if r["kind"] == "ours"]
    present = {r["implementation"] for r in ours if r["status"] != "absent"}
    return {
        r["implementation"]: r["reason"]
        for r in ours
        if r["implementation"] not in present and r["reason"] not in _NEVER_HERE
    }


def _short(record: Record) -> str:
    mode = "fwd" if record["mode"] == "forward" else "f+b"
    sizes = " ".join(f"{name}{_power(value)}" for name, value in record["sizes"].items())
    return f"{record['op']} {mode} {record['dtype']} {sizes}"


def _power(value: int) -> str:
    if value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20}M"
    return f"{value >> 10}k" if value >= 4096 and value % 1024 == 0 else str(value)


def main(argv: list[str], results: Path) -> int:
    """Print the summary of results: the newest run of each case on each device."""
    parser = argparse.ArgumentParser(prog="sede bench table", description=main.__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files or folders [all results]")
    parser.add_argument("--lines", type=flags.whole(1), default=38, help="most cases a device [38]")
    arguments = parser.parse_args(argv)
    latest = list(store.latest(store.load(arguments.results or [results])).values())
    for device in dict.fromkeys(r["device"] for r in latest):
        print(device)
        print(summary([r for r in latest if r["device"] == device], arguments.lines))
    return 0
