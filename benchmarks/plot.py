"""``sede bench plot``: figures (PNG and SVG) and a page from the JSON lines alone."""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sede_kernels.whole_file import atomic_file, write_text

from . import drawing, flags, machine, records, table

Record = dict[str, Any]

FIGURES: dict[str, Callable[[list[Record], Any], Any]] = {
    "k_sweep": drawing.k_sweep,
    "roofline": drawing.roofline,
    "speed_up": drawing.speed_up,
}


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib, before anything is measured.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "figures need matplotlib: run `pip install 'sede-kernels[bench]'`, or leave them out "
            "by `--no-figures`"
        )


def draw(found: list[Record], folder: Path) -> list[Path]:
    """Write every figure that the records allow, as PNG and SVG; returns the paths.

    Records that did not run or did not pass are not drawn, except as out-of-memory marks.
    """
    shown = [r for r in found if r["status"] in ("ok", "out of memory")]
    if not any(r["status"] == "ok" for r in shown):
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = []
    with plt.rc_context(drawing.STYLE):
        for name, make in FIGURES.items():
            figure = make(shown, plt)
            if figure is None:
                continue
            drawing.footer(figure, shown)
            for ending in ("png", "svg"):
                path = folder / f"{name}.{ending}"
                dates = {"Date": None} if ending == "svg" else {}
                with atomic_file(path) as handle:
                    figure.savefig(handle, format=ending, dpi=150, metadata=dates)
                written.append(path)
            plt.close(figure)
    page = folder / "summary.md"
    write_text(page, _page(found))
    return [*written, page]


def _page(found: list[Record]) -> str:
    """The summary table, and everything that was not timed, with its reason."""
    last = max(found, key=lambda r: r["utc"])
    lines = [
        f"# {last['device']}",
        "",
        "Written by `sede bench plot` from the JSON lines; times in ms, memory in MB beyond the",
        "inputs, `x`: how many times longer the other takes. docs/benchmarks.md explains the rest.",
        "",
        "```",
        table.summary(found, most=1000),
        "```",
        "",
        "Not timed:",
        "",
    ]
    for r in found:
        if r["status"] != "ok":
            where = r["op"] if r["status"] == "absent" else table.title(r)
            lines.append(f"- {where}, {r['implementation']}: {r['status']}, {r['reason']}")
    return "\n".join(lines) + "\n"


def newest(places: list[Path]) -> list[Record]:
    """The newest run of each case with the most threads, of all results there."""
    return list(records.latest(records.of_most_threads(records.load(places))).values())


def main(argv: list[str], results: Path) -> int:
    """Draw the newest run of each case with the most threads, one folder of figures a device."""
    parser = argparse.ArgumentParser(prog="sede bench plot", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files or folders [all results]")
    parser.add_argument(
        "--out", type=Path, help="folder of one folder per device [figures/ beside the results]"
    )
    arguments = parser.parse_args(argv)
    require_matplotlib()
    if arguments.out is not None:
        flags.check_folder(arguments.out, "--out")
    latest = newest(arguments.results or [results])
    written = []
    for device in dict.fromkeys(r["device"] for r in latest):
        mine = [r for r in latest if r["device"] == device]
        slug = machine.slug(device)
        if arguments.out:
            folder = arguments.out / slug
        elif arguments.results:
            place = arguments.results[0]
            folder = (place if place.is_dir() else place.parent) / "figures" / slug
        else:
            folder = results / slug / "figures"
        written += draw(mine, folder)
    for path in written:
        print(path)
    if not written:
        print("nothing to draw: no timed record", file=sys.stderr)
    return 0 if written else 1
