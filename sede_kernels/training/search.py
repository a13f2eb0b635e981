"""A small search on dev: the same number of trials for the base and for each module."""

from collections.abc import Container, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from sede_kernels.training.report import Run
from sede_kernels.training.variants import MODULES, Job, Settings, variant_config

SEED = 1000  # of the trials; the seeds of the table are others

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "base": {"lr": (1e-3, 2e-3, 4e-3), "temperature": (0.03, 0.05, 0.1)},
    "age": {
        "erase": ("low", "high"),
        "erase_rule": ("mean", "prob"),
        "erase_pass": ("replace", "second"),
    },
    "lsns": {"bank": (256, 1024, 2048), "momentum": (0.95, 0.99, 0.995)},
    "wil": {"weighting": (1.0, 2.5, 5.0, 10.0, 20.0)},
}


def candidates(
    part: str, trials: int, passes: tuple[str, ...], given: Container[str] = ()
) -> list[Settings]:
    """Some points of a grid, the same ones at every call.

    Args:
        part: ``base`` or a module.
        trials: at most so many; a smaller grid is taken whole.
        passes: erasing passes the model has a place for.
        given: settings that are not searched, since a flag fixes them.
    """
    axes = {name: values for name, values in GRIDS[part].items() if name not in given}
    if "erase_pass" in axes:
        axes["erase_pass"] = passes
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    order = np.random.default_rng(len(points)).permutation(len(points))
    return [points[i] for i in sorted(order[:trials].tolist())]


def trial_jobs(
    model: str,
    part: str,
    trials: int,
    flags: Mapping[str, Any],
    chosen: Mapping[str, Settings],
    passes: tuple[str, ...],
) -> list[Job]:
    """Trials of one part; modules are tried alone, on the base chosen before."""
    variant = "base" if part == "base" else part
    return [
        Job(variant, variant_config(model, variant, {**flags, "seed": SEED}, {**chosen, part: p}))
        for p in candidates(part, trials, passes, flags)
    ]


def best_trial(part: str, trials: Sequence[Run]) -> Settings:
    """The settings of the trial that did best on dev; the first of equals."""
    winner = max(trials, key=lambda run: run.dev)
    names = tuple(GRIDS["base"]) if part == "base" else MODULES[part]
    return {name: getattr(winner.config, name) for name in names}
