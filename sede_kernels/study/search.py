"""A small search on dev: the same number of trials for the base and for each module."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sede_kernels.study.report import Run
from sede_kernels.study.variants import MODULES, Job, Settings, variant_config
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.models import MODELS
from sede_kernels.training.models.base import PASSES

SEED = 1000  # of the trials; the seeds of the table are others

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "base": {
        "lr": (1e-3, 2e-3, 4e-3, 8e-3),
        "temperature": (0.02, 0.03, 0.05, 0.1),
        "dropout": (0.0, 0.1, 0.2, 0.4),
    },
    "age": {
        "erase": ("low", "high"),
        "erase_rule": ("mean", "prob", "quantile"),
        "erase_pass": PASSES,
    },
    "lsns": {
        "bank": (512, 2048, 4096),
        "momentum": (0.98, 0.99, 0.995),
        "bank_keys": ("momentum", "online"),
        "bank_share": (0.25, 1.0),
        "bank_weight": (0.5, 1.0, 2.0),
        "bank_hardest": (1, 4),
    },
    "wil": {"weighting": (1.0, 2.5, 5.0, 10.0, 20.0, 40.0)},
}

# What the settings are without a search.
USUAL: Settings = {
    "lr": 2e-3,
    "temperature": 0.05,
    "dropout": 0.2,
    "erase": "low",
    "erase_rule": "mean",
    "erase_pass": "replace",
    "bank": 2048,
    "momentum": 0.99,
    "bank_keys": "momentum",
    "bank_share": 1.0,
    "bank_weight": 1.0,
    "bank_hardest": 1,
    "weighting": 5.0,
}

# By the quantile a quarter is erased, from the side that --erase says.
QUANTILE = {"low": 0.25, "high": 0.75}


def candidates(part: str, trials: int, model: str, given: Container[str] = ()) -> list[Settings]:
    """Some points of a grid, the same ones at every call; the usual setting is the first.

    Args:
        part: ``base`` or a module.
        trials: at most so many; a smaller grid is taken whole.
        model: axes that make no difference to it are left out.
        given: settings that are not searched, since a flag fixes them.
    """
    axes = {name: values for name, values in GRIDS[part].items() if name not in given}
    if not MODELS[model].compares_fragments:
        axes.pop("bank_hardest", None)
    total = math.prod(len(values) for values in axes.values())
    points = [{name: USUAL[name] for name in axes}]
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
    model: str, part: str, trials: int, flags: Mapping[str, Any], chosen: Mapping[str, Settings]
) -> list[Job]:
    """Trials of one part; modules are tried alone, on the base chosen before."""
    jobs = []
    for point in candidates(part, trials, model, flags):
        settings = dict(point)
        if point.get("erase_rule") == "quantile":
            side = flags.get("erase", point.get("erase", USUAL["erase"]))
            settings["erase_threshold"] = QUANTILE[side]
        config = variant_config(model, part, {**flags, "seed": SEED}, {**chosen, part: settings})
        jobs.append(Job(part, config))
    return jobs


def best_trial(part: str, jobs: Sequence[Job], runs: Sequence[Run]) -> tuple[Settings, list[Run]]:
    """The settings that did best on dev, the first of equals, and the trials they were best of.

    Args:
        part: ``base`` or a module.
        jobs: trials asked for now.
        runs: all trials on file. Those that differ from the jobs in nothing but the settings of
            the part count too, so that a search can go on with other values.

    Raises:
        ValueError: none of them is on file.
    """
    names = tuple(GRIDS["base"]) if part == "base" else MODULES[part]

    def rest(config: TrainConfig) -> Settings:
        return {k: v for k, v in asdict(config).items() if k not in names}

    wanted = [rest(job.config) for job in jobs]
    trials = [run for run in runs if run.variant == part and rest(run.config) in wanted]
    winner = max(trials, key=lambda run: run.dev)
    return {name: getattr(winner.config, name) for name in names}, trials
