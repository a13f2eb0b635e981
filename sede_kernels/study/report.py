"""Tables and figure of an ablation, from its records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from sede_kernels.study.paired import Estimate, estimate
from sede_kernels.study.variants import LABELS, VARIANTS, without_modules
from sede_kernels.training.config import TrainConfig, from_mapping
from sede_kernels.training.files import atomic_file
from sede_kernels.training.records import Record

MINUS = "\N{MINUS SIGN}"
CLOCK_NOISE = 1.02  # so much more time still counts as equal


@dataclass(frozen=True)
class Run:
    """A record with its settings read."""

    variant: str
    config: TrainConfig
    epochs: list[dict[str, Any]]
    analysis: dict[str, Any]
    processor: str = ""  # not told by old records

    @property
    def seconds(self) -> float:
        """Processor seconds of training."""
        return float(self.epochs[-1]["cpu_s"])

    @property
    def epoch_seconds(self) -> float:
        """Processor seconds per epoch."""
        return self.seconds / len(self.epochs)

    def test(self, epochs: int | None = None) -> float:
        """Test rSum of the epoch best on dev, among the first ``epochs``."""
        point = max(self.epochs[:epochs], key=lambda point: float(point["dev"]))
        return float(point["test"])

    @property
    def dev(self) -> float:
        """Best dev rSum."""
        return max(float(point["dev"]) for point in self.epochs)

    @property
    def last_test(self) -> float:
        """Test rSum after the last epoch."""
        return float(self.epochs[-1]["test"])


@dataclass(frozen=True)
class Row:
    """One variant of one model in one setting.

    Attributes:
        model, variant: names.
        test: test rSum at the epoch best on dev.
        dev: dev rSum there.
        cost: processor seconds per epoch, as a multiple of the base's (median of the pairs).
        gains: differences to the base of the same seed, by column; empty for the base.
        per_seed: the differences of ``best``, seed by seed.
        runs: the records behind it.
    """

    model: str
    variant: str
    test: Estimate
    dev: Estimate
    cost: float
    gains: dict[str, Estimate]
    per_seed: list[float]
    runs: list[Run]


def read_runs(records: Sequence[Record]) -> list[Run]:
    """Runs of all records; of equal ones on one processor the first."""
    runs: dict[tuple[TrainConfig, str], Run] = {}
    for run in map(run_of, records):
        runs.setdefault((run.config, run.processor), run)
    return list(runs.values())


def run_of(record: Record) -> Run:
    """A record with its settings read.

    Raises:
        UserError, ValueError: not a whole record of a run.
    """
    config = from_mapping(record["config"], "a record")
    run = Run(
        str(record["variant"]),
        config,
        record["epochs"],
        record.get("analysis") or {},
        str(record.get("processor", "")),
    )
    try:
        known = run.variant in VARIANTS
        (run.test(), run.last_test, run.seconds, run.analysis.items())
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its epochs or its analysis are damaged: {error!r}") from error
    if not known:
        raise ValueError(f"there is no variant {run.variant!r}")
    return run


def settings_of(run: Run) -> tuple[str, int, int, int]:
    """What one table has in common: data, batch size, epochs, width."""
    return run.config.data, run.config.batch_size, run.config.epochs, run.config.dim


def rows(runs: Sequence[Run], bases: Sequence[Run] = ()) -> list[Row]:
    """One row a model and variant of runs that share a table; pairs share all but the modules.

    Of runs of equal settings on several processors a row takes the latest, and a base of the run's
    own processor where there is one.

    Args:
        runs: of one table.
        bases: base runs of any number of epochs, for the column of equal time.
    """
    # A base has settings of modules too, which do nothing: defaults, of the version that ran it.
    every = [run for run in (*bases, *runs) if run.variant == "base"]
    known = {}
    for processor in {run.processor for run in runs}:
        own_last = sorted(every, key=lambda run: run.processor == processor)
        known[processor] = {without_modules(run.config): run for run in own_last}
    found = []
    for model in dict.fromkeys(run.config.model for run in runs):
        for variant in VARIANTS:
            mine = [r for r in runs if (r.config.model, r.variant) == (model, variant)]
            # A base run again under other defaults of modules, or a run on another processor.
            settings = without_modules if variant == "base" else lambda config: config
            mine = list({settings(run.config): run for run in mine}.values())
            if mine:
                found.append(_row(model, variant, mine, known))
    return found


def _row(
    model: str, variant: str, mine: list[Run], known: dict[str, dict[TrainConfig, Run]]
) -> Row:
    pairs = []
    if variant != "base":
        partners = [(run, known[run.processor].get(without_modules(run.config))) for run in mine]
        pairs = [(run, base) for run, base in partners if base is not None]
    # Times of two processors say nothing of the modules.
    timed = [(run, base) for run, base in pairs if run.processor == base.processor] or pairs
    cost = median([run.epoch_seconds / base.epoch_seconds for run, base in timed] or [1.0])
    gains: dict[str, list[float]] = {"best": [], "last": [], "time": []}
    for run, base in pairs:
        gains["best"].append(run.test() - base.test())
        gains["last"].append(run.last_test - base.last_test)
        as_long = _base_score(without_modules(base.config), cost, known[run.processor])
        if as_long is not None:
            gains["time"].append(run.test() - as_long)
    return Row(
        model,
        variant,
        estimate([run.test() for run in mine]),
        estimate([run.dev for run in mine]),
        cost,
        {name: estimate(values) for name, values in gains.items() if values},
        gains["best"],
        mine,
    )


def _base_score(base: TrainConfig, cost: float, bases: dict[TrainConfig, Run]) -> float | None:
    """Test rSum of a base trained ``cost`` times as long, or None where no base was.

    Each base has a schedule of its own: a run stopped in mid schedule would be worse than its time
    allows. Between two schedules the score is interpolated over the logarithm of the epochs.
    """
    runs = {
        config.epochs: run
        for config, run in bases.items()
        if replace(config, epochs=base.epochs) == base
    }
    epochs = base.epochs * (cost if cost > CLOCK_NOISE else 1.0)
    longer = min((n for n in runs if n * CLOCK_NOISE >= epochs), default=None)
    if longer is None:
        return None
    shorter = max((n for n in runs if n < longer), default=longer)
    if epochs >= longer or shorter == longer:
        return runs[longer].test()
    share = math.log(epochs / shorter) / math.log(longer / shorter)
    return (1 - share) * runs[shorter].test() + share * runs[longer].test()


def markdown(runs: Sequence[Run]) -> str:
    """All tables, one for each data set, batch size, number of epochs and width."""
    parts = []
    for settings in sorted({settings_of(run) for run in runs}):
        data, batch, epochs, dim = settings
        table = rows([run for run in runs if settings_of(run) == settings], runs)
        parts.append(f"### {data}, batch {batch}, {epochs} epochs, width {dim}\n")
        parts.append(
            "| model | variant | seeds | dev rSum | test rSum | to base: best on dev "
            "| to base: equal epochs | to base: equal time | time |\n"
            "|---|---|--:|--:|--:|--:|--:|--:|--:|"
        )
        parts += [_line(row) for row in table]
        parts.append("")
        facts = _facts(table)
        if len(facts) > 2:
            parts += [*facts, ""]
    return "\n".join(parts)


def _line(row: Row) -> str:
    cells = [row.model, LABELS[row.variant], str(row.test.count)]
    cells += [_spread(row.dev), _spread(row.test)]
    for column in ("best", "last", "time"):
        cells.append(_gain(row.gains.get(column)) if row.variant != "base" else "")
    cells.append(f"{row.cost:.2f}x")
    return "| " + " | ".join(cells) + " |"


def _spread(value: Estimate) -> str:
    return f"{value.mean:.1f}" + (f" ± {value.spread:.1f}" if value.count > 1 else "")


def _gain(value: Estimate | None) -> str:
    """``+3.1 [+1.0, +5.2]``, bold where the interval excludes 0."""
    if value is None:
        return "none"
    text = _signed(value.mean)
    if value.count > 1:
        low, high = value.interval
        text += f" [{_signed(low)}, {_signed(high)}]"
        if value.verdict != "open":
            text = f"**{text}**"
    return text


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", MINUS)


_FACTS = {
    "entropy before": ("attention", "entropy"),
    "entropy after": ("attention", "entropy_after"),
    "regions kept": ("attention", "regions_kept"),
    "attention kept": ("attention", "attention_kept"),
    "positive": ("negatives", "positive"),
    "hardest in batch": ("negatives", "hardest_in_batch"),
    "hardest of many": ("negatives", "hardest_of_many"),
    "batch beats": ("negatives", "batch_beats"),
    "many beat": ("negatives", "many_beat"),
    "masked queries": ("masked", "queries"),
}


def _facts(table: Sequence[Row]) -> list[str]:
    """The analysis as a second table: means over seeds."""
    lines = [
        "| model | variant | " + " | ".join(_FACTS) + " |",
        "|---|---|" + "--:|" * len(_FACTS),
    ]
    for row in table:
        cells = [row.model, LABELS[row.variant]]
        for group, name in _FACTS.values():
            found = [(run.analysis.get(group) or {}).get(name) for run in row.runs]
            values = [float(value) for value in found if value is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        if any(cells[2:]):
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def figure(runs: Sequence[Run], path: Path) -> None:
    """Draw the paired differences to base: a dot a seed, the mean and its 95 % interval.

    Nothing is drawn, and no file written, where no run has its base.

    Args:
        runs: of any number of settings; one panel a model and setting.
        path: ``.png`` or ``.svg``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    tables = [
        (settings, table)
        for settings in sorted({settings_of(run) for run in runs})
        if (table := rows([run for run in runs if settings_of(run) == settings], runs))
        and any(row.gains for row in table)
    ]
    if not tables:
        return
    models = sorted({run.config.model for run in runs})
    mpl.rcParams["svg.hashsalt"] = "sede"
    page = Figure(figsize=(3.3 * len(models) + 1.0, 2.3 * len(tables) + 0.5), layout="constrained")
    panels = page.subplots(len(tables), len(models), sharex=True, sharey=True, squeeze=False)
    drawn = {row.variant for _, table in tables for row in table if row.gains}
    order = [name for name in VARIANTS if name in drawn]
    for (settings, table), line in zip(tables, panels, strict=True):
        for model, panel in zip(models, line, strict=True):
            data, batch, epochs, _ = settings
            panel.set_title(f"{model}, {data}, batch {batch}, {epochs} epochs", fontsize=9)
            panel.axvline(0, color="#7a7a7a", linewidth=1)
            panel.set_yticks(range(len(order)), [LABELS[name] for name in order])
            panel.set_ylim(len(order) - 0.5, -0.5)
            panel.grid(axis="x", color="#e4e4e4", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            mine = [row for row in table if row.model == model and row.gains]
            panel.set_visible(bool(mine))
            for row in mine:
                _draw_gain(panel, order.index(row.variant), row)
    for line in panels:
        shown = [panel for panel in line if panel.get_visible()]
        for panel in shown:  # shared axes would keep the numbers to the lowest line
            panel.set_xlabel("test rSum, difference to base", fontsize=9)
            panel.tick_params(labelbottom=True, labelleft=panel is shown[0])
    unique: dict[str, Any] = {}
    for panel in panels.flat:
        handles, labels = panel.get_legend_handles_labels()
        unique |= dict(zip(labels, handles, strict=True))
    if unique:
        page.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=8)
    with atomic_file(path) as handle:
        kind = path.suffix.lstrip(".") or "png"
        facts = {"Date": None} if kind == "svg" else {}
        page.savefig(handle, format=kind, dpi=150, metadata=facts)


def _draw_gain(panel: Any, place: int, row: Row) -> None:
    panel.plot(
        row.per_seed,
        [place - 0.14] * len(row.per_seed),
        "o",
        color="#2166ac",
        markersize=3,
        alpha=0.45,
        label="a seed, best on dev",
    )
    for column, offset, colour, label in (
        ("best", -0.14, "#2166ac", "mean and 95 % interval, best on dev"),
        ("time", 0.14, "#b2621b", "the same at equal time"),
    ):
        gain = row.gains.get(column)
        if gain is None:
            continue
        half = gain.half if gain.count > 1 else 0.0
        panel.errorbar(
            gain.mean,
            place + offset,
            xerr=half,
            fmt="D",
            color=colour,
            markersize=4.5,
            capsize=3,
            label=label,
        )
