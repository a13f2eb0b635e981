"""``sede bench plot``: figures (PNG and SVG) from the JSON lines alone."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine, records, table

Record = dict[str, Any]
Groups = dict[tuple[Any, ...], list[Record]]

_COLORS = {
    "sede cpu": "#0b5cad",
    "sede triton": "#0b5cad",
    "sede kernels": "#0b5cad",
    "sede cuda": "#08366b",
    "sede torch": "#6cb2eb",
    "eager": "#8a8f98",
    "torch.compile": "#e69f00",
    "chunked torch": "#2a9d6f",
    "attention V=K": "#b5559a",
    "linear_cross_entropy": "#d1531e",
    "lightly": "#8c6d31",
    "metric-learning XBM": "#5f4b8b",
    "caption loop": "#c0392b",
    "cce_exact": "#17a2b8",
    "liger": "#7f8c1f",
    "quack": "#aa3377",
    "memeff": "#b58900",
    "inf-cl": "#6c4f3d",
}
_OTHER = "#444444"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "sede",
    "svg.fonttype": "none",
}


def _color(name: str) -> str:
    return _COLORS.get(name, _OTHER)


def _grouped(found: list[Record]) -> Groups:
    groups: Groups = {}
    for record in found:
        groups.setdefault(records.case_key(record), []).append(record)
    return groups


def _power(value: int) -> str:
    if value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20}M"
    return f"{value >> 10}k" if value >= 1024 and value % 1024 == 0 else f"{value:,}"


def _sizes(record: Record) -> str:
    return ", ".join(f"{name} {_power(value)}" for name, value in record["sizes"].items())


def _label(record: Record) -> str:
    mode = "" if record["mode"] == "forward+backward" else ", forward"
    return f"{record['op']} {record['dtype']}{mode}\n{_sizes(record)}"


def _footer(figure: Any, found: list[Record]) -> None:
    last = max(found, key=lambda r: r["utc"])
    dates = sorted({r["utc"][:10] for r in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    text = (
        f"{last['device']}, {last['threads']} threads · torch {last['torch']} · "
        f"sede-kernels {last['sede_kernels']} ({last['git']}) · {when} UTC · "
        "medians of interleaved runs, each result checked against fp64"
    )
    figure.text(0.01, 0.005, text, fontsize=7.5, color="#666666", ha="left", va="bottom")


def _sweeps(found: list[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records of info_nce by (mode, dtype, B, D), where at least three K were run."""
    sweeps: dict[tuple[Any, ...], list[Record]] = {}
    for r in found:
        if r["op"] == "info_nce" and r["status"] in ("ok", "out of memory"):
            sizes = r["sizes"]
            sweeps.setdefault((r["mode"], r["dtype"], sizes["B"], sizes["D"]), []).append(r)
    return {k: v for k, v in sweeps.items() if len({r["sizes"]["K"] for r in v}) > 2}


def k_sweep(found: list[Record], plt: Any) -> Any:
    """Time and extra peak memory against K."""
    sweeps = _sweeps(found)
    if not sweeps:
        return None
    key = max(sweeps, key=lambda k: len({r["sizes"]["K"] for r in sweeps[k]}))
    chosen = sweeps[key]
    mode, dtype, batch, dim = key
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6))
    names = list(dict.fromkeys(r["implementation"] for r in chosen))
    slots = sorted({r["sizes"]["K"] for r in chosen})
    fields = (("median_ms", "time, ms", 1e-3), ("extra_peak_mb", "extra peak memory, MB", 0.05))
    for axis, (field, label, least) in zip(axes, fields, strict=True):
        for name in names:
            mine = {r["sizes"]["K"]: r for r in chosen if r["implementation"] == name}
            points = [
                (k, max(r[field], least)) for k, r in sorted(mine.items()) if r[field] is not None
            ]
            ours = name.startswith("sede")
            if len(points) > 0:
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=5,
                    color=_color(name),
                    linewidth=2.6 if ours and name != "sede torch" else 1.5,
                    zorder=3 if ours else 2,
                    label=name,
                )
        axis.set(xscale="log", yscale="log", xlabel="bank rows K", ylabel=label)
        axis.set_xticks(slots, [_power(k) for k in slots])
        axis.minorticks_off()
        lost = [r for r in chosen if r["status"] == "out of memory"]
        for r in lost:
            axis.plot(
                r["sizes"]["K"],
                0.97,
                marker="x",
                markersize=8,
                color=_color(r["implementation"]),
                transform=axis.get_xaxis_transform(),
                clip_on=False,
            )
        if lost:
            axis.text(0.01, 1.0, "x: out of memory", transform=axis.transAxes, fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=6, bbox_to_anchor=(0.5, 0.03))
    words = {"forward": "loss", "forward+backward": "loss and query gradient"}
    figure.suptitle(
        f"InfoNCE against a bank: {words[mode]}, {dtype}, B = {batch}, D = {dim}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    figure.tight_layout(rect=(0, 0.12, 1, 0.97))
    return figure


def _roofline_cases(groups: Groups) -> list[list[Record]]:
    """Bank losses with a matrix limit, those with the most variants first."""
    chosen = [
        [r for r in group if r["status"] == "ok"]
        for group in groups.values()
        if group[0]["flops"] and group[0]["bytes"] and group[0]["op"] == "info_nce"
    ]
    return sorted((g for g in chosen if g), key=len, reverse=True)


def roofline(found: list[Record], plt: Any) -> Any:
    """Left: GFLOP/s against arithmetic intensity under the measured roofs; right: fractions."""
    cases = _roofline_cases(_grouped(found))
    if not cases:
        return None
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 5.4), gridspec_kw={"width_ratios": (1, 1.05)}
    )
    every = [r for group in cases for r in group]
    intensities = [r["flops"] / r["bytes"] for r in every]
    low, high = min(intensities) / 4, max(intensities) * 3
    roofs: dict[str, Record] = {r["dtype"]: r for r in every}
    drawn: set[int] = set()
    for _, r in sorted(roofs.items()):
        peak, bandwidth = r["matrix_gflops"], r["copy_gbs"]
        if round(peak) in drawn:
            continue
        drawn.add(round(peak))
        same = [d for d, o in roofs.items() if round(o["matrix_gflops"]) == round(peak)]
        xs = [low, max(low, peak / bandwidth), high]
        left.plot(xs, [min(peak, x * bandwidth) for x in xs], color="#333333", linewidth=1.4)
        left.annotate(
            f"{', '.join(sorted(same))}: {peak:,.0f} GFLOP/s",
            (high, peak),
            ha="right",
            va="bottom",
            fontsize=8.5,
            xytext=(0, 2),
            textcoords="offset points",
        )
    seen: set[str] = set()
    marks = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
    for r in every:
        name = r["implementation"]
        left.plot(
            r["flops"] / r["bytes"],
            r["flops"] / r["median_ms"] / 1e6,
            marks[r["dtype"]],
            color=_color(name),
            markersize=7 if r["kind"] == "ours" else 5.5,
            alpha=0.9,
            label=None if name in seen else name,
            zorder=3 if r["kind"] == "ours" else 2,
        )
        seen.add(name)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs per byte of the bank",
        ylabel="GFLOP/s (of the formula)",
        title="Roofline",
    )
    left.text(
        0.02, 0.98, "circle fp32, square bf16, triangle fp16, diamond int8",
        transform=left.transAxes, fontsize=8, va="top", color="#555555",
    )  # fmt: skip
    left.legend(fontsize=8, loc="lower right")
    _fraction_bars(right, cases[:5])
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def _fraction_bars(axis: Any, cases: list[list[Record]]) -> None:
    ticks, names, heads, position = [], [], [], 0.0
    for group in cases:
        heads.append((position, _label(group[0]).replace("\n", ", ")))
        position += 1.0
        for r in sorted(group, key=lambda r: r["median_ms"]):
            axis.barh(
                position, 100 * r["fraction_of_limit"], 0.8, color=_color(r["implementation"])
            )
            axis.text(
                100 * r["fraction_of_limit"] + 1, position,
                f"{100 * r['fraction_of_limit']:.0f} %", va="center", fontsize=8,
            )  # fmt: skip
            ticks.append(position)
            names.append(r["implementation"])
            position += 1.0
        position += 0.5
    for at, text in heads:
        axis.text(0, at, text, fontsize=8.5, va="center", fontweight="bold", color="#333333")
    axis.set_yticks(ticks, names, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlim=(0, 108), xlabel="% of the limit", title="Fraction of the measured limit")


def speed_up(found: list[Record], plt: Any) -> Any:
    """How many times faster than the best other implementation, and than eager."""
    rows = []
    for group in _grouped(found).values():
        ours, other = table.best(group, ours=True), table.best(group, ours=False)
        if ours is None or other is None:
            continue
        eager = next((r for r in group if r["kind"] == "eager" and r["status"] == "ok"), None)
        rows.append((ours, other, eager))
    if not rows:
        return None
    rows = rows[:26]
    figure, axis = plt.subplots(figsize=(10.5, 1.6 + 0.44 * len(rows)))
    labels = []
    widest = 1.0
    for index, (ours, other, eager) in enumerate(rows):
        ratio = other["median_ms"] / ours["median_ms"]
        text = f"{ratio:.2f} x {other['implementation']}"
        reach = ratio
        if eager is not None and eager is not other:
            against = eager["median_ms"] / ours["median_ms"]
            axis.barh(index, against, 0.72, color="#d5d9df", zorder=2)
            text += f"   ({against:.1f} x eager)"
            reach = max(ratio, against)
        axis.barh(index, ratio, 0.72, color=_color(ours["implementation"]), zorder=3)
        axis.text(reach * 1.04, index, text, va="center", fontsize=8.5)
        labels.append(_label(ours).replace("\n", " · "))
        widest = max(widest, reach)
    axis.axvline(1, color="#333333", linewidth=1, zorder=4)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    low = min(0.5, *(o["median_ms"] / u["median_ms"] for u, o, _ in rows)) * 0.9
    axis.set(xscale="log", xlim=(low, widest * 5), xlabel="times faster (log scale; 1 = as fast)")
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= t <= widest * 1.3]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_title("Speed-up of the best sede backend: blue, over the best other; grey, over eager")
    figure.tight_layout(rect=(0, 0.25 / (1.6 + 0.44 * len(rows)), 1, 1))
    return figure


FIGURES: dict[str, Callable[[list[Record], Any], Any]] = {
    "k_sweep": k_sweep,
    "roofline": roofline,
    "speed_up": speed_up,
}


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
    with plt.rc_context(_STYLE):
        for name, make in FIGURES.items():
            figure = make(shown, plt)
            if figure is None:
                continue
            _footer(figure, shown)
            folder.mkdir(parents=True, exist_ok=True)
            for ending in ("png", "svg"):
                path = folder / f"{name}.{ending}"
                dates = {"Date": None} if ending == "svg" else {}
                figure.savefig(path, dpi=150, metadata=dates)
                written.append(path)
            plt.close(figure)
    return written


def main(argv: list[str], results: Path, figures: Path) -> int:
    """Draw the latest record of each case, one folder of figures a device."""
    parser = argparse.ArgumentParser(prog="sede bench plot", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files or folders [all results]")
    parser.add_argument("--out", type=Path, default=figures, help="folder of folders [figures]")
    arguments = parser.parse_args(argv)
    paths = [p for place in arguments.results or [results] for p in records.files_in(place)]
    found, problems = records.read(paths)
    for problem in problems:
        print(f"unreadable: {problem}", file=sys.stderr)
    latest = list(records.latest(found).values())
    written = []
    for device in dict.fromkeys(r["device"] for r in latest):
        mine = [r for r in latest if r["device"] == device]
        written += draw(mine, arguments.out / machine.slug(device))
    for path in written:
        print(path)
    if not written:
        print("nothing to draw: no timed record", file=sys.stderr)
    return 0 if written else 1
