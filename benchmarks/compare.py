"""``sede bench compare BASE HEAD``: what became faster, slower, wrong, or is gone."""

import argparse
from pathlib import Path
from typing import Any

from . import measured, records, table

Record = dict[str, Any]


def _share(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 5% or 0.05, got {text!r}") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text!r}")
    return value


def _load(place: Path) -> dict[tuple[Any, ...], Record]:
    return records.latest(records.load([place]))


def _slower(base: Record, head: Record, fail_above: float) -> bool:
    """Median worse by more than the share, and not within the spread of the two runs.

    Runs overlap when head's p20 lies below base's p80: then the difference may be noise.
    """
    worse = head["median_ms"] > base["median_ms"] * (1 + fail_above)
    return bool(worse and head["p20_ms"] > base["p80_ms"])


def changes(
    base: dict[tuple[Any, ...], Record], head: dict[tuple[Any, ...], Record], fail_above: float
) -> tuple[list[list[str]], int]:
    """Rows (case, implementation, base ms, head ms, change, verdict) and how many of ours fail."""
    rows, failed = [], 0
    for key, before in base.items():
        if before["status"] != "ok":
            continue
        after = head.get(key)
        ours = before["kind"] == "ours"
        was = f"{before['median_ms']:.3g}"
        if after is None:
            verdict, now, change = "not run", "-", "-"
        elif after["status"] != "ok":
            verdict, now, change = after["status"], "-", "-"
            failed += ours
        else:
            ratio = after["median_ms"] / before["median_ms"]
            now, change = f"{after['median_ms']:.3g}", f"{100 * (ratio - 1):+.1f} %"
            slower = _slower(before, after, fail_above)
            verdict = "SLOWER" if slower else "faster" if _slower(after, before, 0) else "same"
            failed += ours and slower
        rows.append([table.title(before), before["implementation"], was, now, change, verdict])
    return rows, failed


def _refuse_gaps(sides: dict[Path, dict[tuple[Any, ...], Record]], allowed: list[str]) -> None:
    """Refuse when a backend of ours is absent on one side and timed on the other.

    Raises:
        ValueError: so it is; the sentence says where, why, and what to do.
    """
    for place, found in sides.items():
        gaps = table.gaps(list(found.values()))
        others = [r for where, side in sides.items() if where != place for r in side.values()]
        timed = {r["implementation"] for r in others if r["status"] == "ok"}
        for name in gaps.keys() & timed:
            backend = name.removeprefix("sede ")
            if backend not in allowed:
                raise ValueError(
                    f"{place} was measured without {name} ({gaps[name]}), which the other side "
                    f"has: compare runs that have it, or pass `--allow-missing {backend}`"
                )


def _refuse_other_threads(
    base: dict[tuple[Any, ...], Record], head: dict[tuple[Any, ...], Record]
) -> None:
    """Refuse to compare a case that was timed on another number of threads.

    Raises:
        ValueError: so it was; the sentence names the case.
    """
    for key, before in base.items():
        after = head.get(key, before)
        ran = "absent" not in (before["status"], after["status"])
        if ran and before["threads"] != after["threads"]:
            raise ValueError(
                f"{table.title(before)} was measured on {before['threads']} and on "
                f"{after['threads']} threads: compare runs of one number (`--threads`)"
            )


def _origin(found: dict[tuple[Any, ...], Record]) -> str:
    """Which package, torch, threads and days the records are of."""
    words = []
    for name, before in (("git", "sede-kernels "), ("torch", "torch "), ("threads", "threads ")):
        words.append(before + ", ".join(sorted({str(r[name]) for r in found.values()})))
    days = sorted({r["utc"][:10] for r in found.values()})
    return "; ".join([*words, days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"])


def main(argv: list[str]) -> int:
    """Compare two results files or folders; the newest run of each case counts."""
    parser = argparse.ArgumentParser(prog="sede bench compare", description=__doc__)
    parser.add_argument("base", type=Path, help="results file or folder")
    parser.add_argument("head", type=Path, help="results file or folder")
    parser.add_argument(
        "--fail-above",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="exit 1 when one of our variants is slower by more, beyond the spread [5%%]",
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="BACKEND",
        help="compare although one side was measured without this backend",
    )
    arguments = parser.parse_args(argv)
    measured.check_allowed(arguments.allow_missing)
    base, head = _load(arguments.base), _load(arguments.head)
    devices = {r["device"] for r in base.values()}, {r["device"] for r in head.values()}
    if not devices[0] & devices[1]:
        raise ValueError(
            f"the results are of different devices ({', '.join(sorted(devices[0]))} and "
            f"{', '.join(sorted(devices[1]))}): compare runs of one machine"
        )
    _refuse_gaps({arguments.base: base, arguments.head: head}, arguments.allow_missing)
    _refuse_other_threads(base, head)
    rows, failed = changes(base, head, arguments.fail_above)
    if not rows:
        raise ValueError(f"{arguments.base} holds no timed record to compare with")
    print(f"base: {_origin(base)}\nhead: {_origin(head)}")
    header = ["case", "implementation", "base ms", "head ms", "change", ""]
    print(table.render([header, *rows], left=2))
    share = f"{100 * arguments.fail_above:g} %"
    print(f"{failed} of ours slower by more than {share}, wrong or failing" if failed else "fine")
    return 1 if failed else 0
