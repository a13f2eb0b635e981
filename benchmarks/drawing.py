"""The figures: time and memory against K, roofline, speed-up."""

from typing import Any

from . import records, table

Record = dict[str, Any]
Groups = dict[tuple[Any, ...], list[Record]]

_COLORS = {
    "sede cpu": "#0b5cad",
    "sede triton": "#0b5cad",
    "sede triton online": "#4f86c6",
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
    "cce torch_compile": "#7ad0dc",
    "liger": "#7f8c1f",
    "quack": "#aa3377",
    "memeff": "#b58900",
    "inf-cl": "#6c4f3d",
}
_OTHER = "#444444"
_MARKS = {
    "fp32": ("o", "circle"),
    "bf16": ("s", "square"),
    "fp16": ("^", "triangle"),
    "int8": ("D", "diamond"),
}
STYLE: dict[Any, Any] = {
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


def footer(figure: Any, found: list[Record]) -> None:
    """Machine, versions, commits and dates."""
    last = max(found, key=lambda r: r["utc"])
    dates = sorted({r["utc"][:10] for r in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = len({r["git"] for r in found})
    of = last["git"] if commits == 1 else f"of {commits} commits up to {last['git'][:7]}"
    text = (
        f"{last['device']}, {records.threads_of(found)} · torch {last['torch']} · "
        f"sede-kernels {of} · {when} UTC · "
        "medians of interleaved runs, checked against fp64"
    )
    figure.text(0.01, 0.005, text, fontsize=7.2, color="#666666", ha="left", va="bottom")


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
    mode, dtype, batch, dim = key
    chosen = sweeps[key]
    counts = {r["implementation"]: 0 for r in chosen}
    for r in chosen:
        counts[r["implementation"]] += 1
    chosen = [r for r in chosen if counts[r["implementation"]] > 2]
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.6))
    _sweep_lines(axes[0], chosen, "median_ms", 1e-3)
    axes[0].set(title="Time, ms")
    _sweep_lines(axes[1], chosen, "extra_peak_mb", 0.1)
    axes[1].set(title="Extra peak memory, MB")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=7, bbox_to_anchor=(0.5, 0.035))
    words = {"forward": "loss", "forward+backward": "loss and query gradient"}
    figure.suptitle(
        f"InfoNCE against a bank: {words[mode]}, {dtype}, B = {batch}, D = {dim}",
        x=0.012,
        ha="left",
        fontweight="bold",
        fontsize=12,
    )
    figure.tight_layout(rect=(0, 0.1, 1, 0.99))
    return figure


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10, ... instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _sweep_lines(axis: Any, chosen: list[Record], field: str, least: float) -> None:
    """One line an implementation over K; a cross at the top where memory ran out."""
    slots = sorted({r["sizes"]["K"] for r in chosen})
    for name in dict.fromkeys(r["implementation"] for r in chosen):
        mine = sorted(
            (r["sizes"]["K"], r) for r in chosen if r["implementation"] == name and r[field]
        )
        native = name.startswith("sede") and name != "sede torch"
        axis.plot(
            [k for k, _ in mine],
            [max(r[field], least) for _, r in mine],
            marker="o",
            markersize=6 if native else 4.5,
            color=_color(name),
            linewidth=2.8 if native else 1.5,
            zorder=4 if native else 2,
            label=name,
        )
    axis.set(xscale="log", yscale="log", xlabel="bank rows K")
    axis.set_xticks(slots, [_power(k) for k in slots])
    axis.minorticks_off()
    _plain_ticks(axis.yaxis)
    lost = [r for r in chosen if r["status"] == "out of memory"]
    for r in lost:
        axis.plot(
            r["sizes"]["K"],
            0.97,
            marker="x",
            markersize=8,
            markeredgewidth=2,
            color=_color(r["implementation"]),
            transform=axis.get_xaxis_transform(),
            clip_on=False,
        )
    if lost:
        axis.text(0.01, 0.95, "x: out of memory", transform=axis.transAxes, fontsize=8)


def _roofline_cases(groups: Groups) -> list[list[Record]]:
    """Bank losses with gradients at up to six (dtype, B, D), each at the K with most variants."""
    chosen: dict[tuple[Any, ...], list[Record]] = {}
    for group in groups.values():
        first = group[0]
        timed = [r for r in group if r["status"] == "ok"]
        if not timed or first["op"] != "info_nce" or first["mode"] != "forward+backward":
            continue
        key = (first["dtype"], first["sizes"]["B"], first["sizes"]["D"])
        if len(timed) > len(chosen.get(key, ())):
            chosen[key] = timed
    return sorted(chosen.values(), key=len, reverse=True)[:6]


def roofline(found: list[Record], plt: Any) -> Any:
    """Left: GFLOP/s against arithmetic intensity under the measured roofs; right: fractions."""
    from matplotlib.patches import Patch

    cases = _roofline_cases(_grouped(found))
    if not cases:
        return None
    rows = sum(len(group) + 1.5 for group in cases)
    height = max(5.0, 1.2 + 0.2 * rows)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, height), gridspec_kw={"width_ratios": (1.15, 1)}
    )
    every = [r for group in cases for r in group]
    _roofs(left, every)
    names = list(dict.fromkeys(r["implementation"] for r in every))
    seen: set[str] = set()
    for r in every:
        name, ours = r["implementation"], r["kind"] == "ours"
        aside = 1.05 ** (names.index(name) - (len(names) - 1) / 2)  # side by side, not stacked
        left.plot(
            aside * r["flops"] / r["bytes"],
            r["flops"] / r["median_ms"] / 1e6,
            _MARKS[r["dtype"]][0],
            color=_color(name),
            markersize=9 if ours else 6,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=4 if ours else 3,
        )
        seen.add(r["dtype"])
    drawn = ", ".join(f"{_MARKS[dtype][1]} {dtype}" for dtype in _MARKS if dtype in seen)
    left.set(
        xscale="log",
        yscale="log",
        xlabel=f"FLOPs per byte; {drawn}\nimplementations of a case stand side by side",
        ylabel="GFLOP/s (formula / time)",
        title="Roofline",
    )
    for axis in (left.xaxis, left.yaxis):
        _plain_ticks(axis)
    left.legend(
        handles=[Patch(color=_color(name), label=name) for name in names],
        fontsize=8.5,
        loc="lower left",
        frameon=True,
        framealpha=0.95,
        edgecolor="none",
    )
    _fraction_bars(right, cases)
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    return figure


def _roofs(axis: Any, every: list[Record]) -> None:
    """Best measured bandwidth and matrix rates; dtypes within 5 % of each other share a line."""
    bandwidth = max(r["copy_gbs"] for r in every)
    best: dict[str, float] = {}
    for r in every:
        best[r["dtype"]] = max(r["matrix_gflops"], best.get(r["dtype"], 0.0))
    rates: dict[int, set[str]] = {}
    for dtype, rate in sorted(best.items(), key=lambda item: -item[1]):
        peak = next((known for known in rates if rate > 0.95 * known), round(rate))
        rates.setdefault(peak, set()).add(dtype)
    intensities = [r["flops"] / r["bytes"] for r in every]
    low = min(*intensities, min(rates) / bandwidth) / 3
    high = max(intensities) * 2.5
    for peak, dtypes in rates.items():
        ridge = peak / bandwidth
        axis.plot([low, ridge, high], [low * bandwidth, peak, peak], color="#333333", linewidth=1.3)
        axis.annotate(
            f"{', '.join(sorted(dtypes))}: {peak:,} GFLOP/s",
            (ridge, peak),
            ha="left",
            va="top",
            fontsize=8.5,
            xytext=(4, -3),  # below the roof, where no slope comes by
            textcoords="offset points",
        )
    axis.annotate(
        f"copy {bandwidth:.0f} GB/s",
        (low * 1.2, low * 1.2 * bandwidth),
        fontsize=8.5,
        xytext=(8, -2),
        textcoords="offset points",
    )
    axis.set_xlim(low, high)


def _fraction_bars(axis: Any, cases: list[list[Record]]) -> None:
    ticks, names, position, widest = [], [], 0.0, 100.0
    for group in cases:
        label = _label(group[0]).replace("\n", ", ")
        axis.text(0, position, label, fontsize=8.5, va="center", fontweight="bold")
        position += 0.95
        for r in sorted(group, key=lambda r: r["median_ms"]):
            share = 100 * r["fraction_of_limit"]
            axis.barh(position, share, 0.8, color=_color(r["implementation"]))
            axis.text(share + 1, position, f"{share:.0f} %", va="center", fontsize=8)
            ticks.append(position)
            names.append(r["implementation"])
            position += 1.0
            widest = max(widest, share)
        position += 0.4
    axis.axvline(100, color="#333333", linewidth=1)
    axis.set_yticks(ticks, names, fontsize=8)
    axis.set_ylim(position - 0.4, -0.8)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.set(
        xlim=(0, widest * 1.12), xlabel="% of the limit", title="Fraction of the measured limit"
    )


def _usual(group: list[Record]) -> Record | None:
    """What most people run: the published loop where there is one, else eager."""
    timed = {r["implementation"]: r for r in group if r["status"] == "ok"}
    return timed.get("caption loop", timed.get("eager"))


def speed_up(found: list[Record], plt: Any) -> Any:
    """How many times faster than the best other implementation, and than the usual one."""
    rows = []
    for group in _grouped(found).values():
        ours, other = table.best(group, ours=True), table.best(group, ours=False)
        if ours is None or other is None:
            continue
        rows.append((ours, other, _usual(group)))
    if not rows:
        return None
    rows = rows[:34]
    height = 1.6 + 0.34 * len(rows)
    figure, axis = plt.subplots(figsize=(10.5, height))
    labels, low, high = [], 0.8, 2.0
    for index, (ours, other, usual) in enumerate(rows):
        ratio = other["median_ms"] / ours["median_ms"]
        text = f"{ratio:.2f} x {other['implementation']}"
        reach = max(ratio, 1.0)
        if usual is not None and usual is not other:
            against = usual["median_ms"] / ours["median_ms"]
            axis.barh(index, against - 1, 0.74, left=1, color="#d5d9df", zorder=2)
            text += f"   ({against:.1f} x {usual['implementation']})"
            reach = max(reach, against)
        color = _color(ours["implementation"]) if ratio >= 1 else "#b9573c"
        axis.barh(index, ratio - 1, 0.74, left=1, color=color, zorder=3)
        axis.text(reach * 1.03, index, text, va="center", fontsize=8.5)
        labels.append(_label(ours).replace("\n", " · "))
        low, high = min(low, ratio * 0.9), max(high, reach)
    axis.axvline(1, color="#333333", linewidth=1, zorder=4)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.set(xscale="log", xlim=(low, high * 4.5), xlabel="times faster (log scale; 1 = as fast)")
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= t <= high * 1.3]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    figure.suptitle(
        "Best sede backend against the best other implementation (colour) and the usual one (grey)",
        x=0.012,
        ha="left",
        fontweight="bold",
        fontsize=12,
    )
    figure.tight_layout(rect=(0, 0.25 / height, 1, 1))
    _make_room(figure, axis)
    return figure


def _make_room(figure: Any, axis: Any) -> None:
    """Widen a logarithmic x axis until no text of it is cut at the right."""
    renderer = figure.canvas.get_renderer()
    low, high = axis.get_xlim()
    for _ in range(60):
        edge = axis.get_window_extent(renderer).x1
        if all(text.get_window_extent(renderer).x1 <= edge for text in axis.texts):
            return
        high *= 1.15
        axis.set_xlim(low, high)
