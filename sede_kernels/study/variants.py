"""The three modules on and off: which settings belong to which, and the grid of runs."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sede_kernels.training.config import TrainConfig, from_mapping
from sede_kernels.training.files import UserError
from sede_kernels.training.models import MODELS

Settings = dict[str, Any]

_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}

# Settings of each module; the first one switches it on.
MODULES: dict[str, tuple[str, ...]] = {
    "age": tuple(name for name in _FIELDS if name.startswith("erase")),
    "lsns": (*(name for name in _FIELDS if name.startswith("bank")), "momentum"),
    "wil": ("weighting",),
}
_MODULE_FIELDS = [name for names in MODULES.values() for name in names]

VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "age": ("age",),
    "lsns": ("lsns",),
    "wil": ("wil",),
    "all": ("age", "lsns", "wil"),
}
LABELS = {"base": "base", "age": "+erase", "lsns": "+bank", "wil": "+weighting", "all": "all three"}


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    variant: str
    config: TrainConfig

    @property
    def name(self) -> str:
        """For folders and progress lines; runs of other settings have other names."""
        config = self.config
        digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:6]
        return f"{config.model}-{self.variant}-seed{config.seed}-{digest}"


def without_modules(config: TrainConfig) -> TrainConfig:
    """The base run that a run is compared with: the same but for the modules."""
    off: Settings = {name: _FIELDS[name].default for name in _MODULE_FIELDS}
    return replace(config, **off)


def variant_config(
    model: str, variant: str, flags: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Any]]
) -> TrainConfig:
    """Settings of one variant.

    Args:
        model: name of the model.
        variant: a key of ``VARIANTS``.
        flags: given by hand; they win. Those of modules that are off here do not count.
        chosen: settings a search found, by ``base`` and module.

    A module is switched on with what the flags say, else with what was chosen, else with the usual
    value of its bare flag.
    """
    values: Settings = {"threads": 1, **chosen.get("base", {})}
    values |= {name: value for name, value in flags.items() if name not in _MODULE_FIELDS}
    for module in VARIANTS[variant]:
        names = MODULES[module]
        values[names[0]] = _FIELDS[names[0]].metadata["bare"]
        values |= chosen.get(module, {})
        values |= {name: flags[name] for name in names if name in flags}
    return from_mapping({**values, "model": model}, f"{model} {variant}")


def grid(
    models: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[int],
    flags: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[Job]:
    """All runs, seed by seed, so that a stopped grid holds whole pairs.

    Raises:
        UserError: unknown model or variant, or settings that do not fit, before anything runs.
    """
    for what, names, known in (("model", models, MODELS), ("variant", variants, VARIANTS)):
        for name in names:
            if name not in known:
                raise UserError(f"there is no {what} {name!r}: choose from {', '.join(known)}.")
    first = {
        (model, variant): variant_config(model, variant, flags, chosen.get(model, {}))
        for model in models
        for variant in variants
    }
    return [
        Job(variant, replace(config, seed=seed))
        for seed in seeds
        for (_, variant), config in first.items()
    ]
