"""A small search on dev: the same number of trials for the base and for each module."""

import math
from collections.abc import Container, Mapping, Sequence
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

# What the settings are without a search.
USUAL: Settings = {
    "lr": 2e-3,
    "temperature": 0.05,
    "erase": "low",
    "erase_rule": "mean",
    "erase_pass": "replace",
    "bank": 2048,
    "momentum": 0.99,
    "weighting": 5.0,
}


def candidates(
    part: str, trials: int, passes: tuple[str, ...], given: Container[str] = ()
) -> list[Settings]:
    """Some points of a grid, the same ones at every call; the usual setting is the first.

    Args:
        part: ``base`` or a module.
        trials: at most so many; a smaller grid is taken whole.
        passes: erasing passes the model has a place for.
        given: settings that are not searched, since a flag fixes them.
    """
    axes = {name: values for name, values in GRIDS[part].items() if name not in given}
    if "erase_pass" in axes:
        axes["erase_pass"] = passes
    total = math.prod(len(values) for values in axes.values())
    points = [{name: USUAL[name] for name in axes}]
    if points[0].get("erase_pass") not in (None, *passes):
        points = []
    rng = np.random.default_rng(0)
    while len(points) < min(trials, total):
        # A round shows every value of every axis, so that few trials are spread out.
        longest = max(len(values) for values in axes.values())
        columns = [[values[i] for i in rng.permutation(len(values))] for values in axes.values()]
        for i in range(longest):
            point = {n: c[i % len(c)] for n, c in zip(axes, columns, strict=True)}
            if point not in points:
                points.append(point)
    return points[:trials]


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
