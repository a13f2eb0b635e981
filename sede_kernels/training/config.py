"""Settings of a training run: one dataclass gives the flags, the TOML keys and the checks."""

import argparse
import dataclasses
import difflib
import importlib
import json
import math
import sys
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from sede_kernels.erase_checks import ERASE_RULES, RULES_WITHOUT_THRESHOLD
from sede_kernels.training.files import UserError
from sede_kernels.training.models import MODELS, Erasing
from sede_kernels.training.models.base import PASSES
from sede_kernels.training.models.bfan import FOCAL_RULES
from sede_kernels.training.models.scan import DIRECTIONS

SIDES = ("off", "low", "high")
_WHOLE = 2**31 - 1  # most of a whole number that becomes a size
_LARGE = 1e6  # most of a number that multiplies: beyond it fp32 has no digits left
# Lowest value, whether that one is allowed, highest value.
_BOUNDS: dict[str, tuple[float, bool, float]] = {
    **dict.fromkeys(
        ("epochs", "batch_size", "dim", "word_dim", "checkpoint_every"),
        (0, False, _WHOLE),
    ),
    **dict.fromkeys(("bank", "bank_hardest", "bank_start", "patience"), (0, True, _WHOLE)),
    **dict.fromkeys(("lr", "temperature", "margin"), (0, False, _LARGE)),
    **dict.fromkeys(
        ("weight_decay", "weighting", "smoothing", "bank_weight", "erase_weight"),
        (0, True, _LARGE),
    ),
    "grad_clip": (0, False, math.inf),
    "relations": (0, False, 1000),
    "threads": (0, True, 1024),
    "workers": (0, True, 1024),
    "seed": (0, True, 2**63 - 1),
}
_LEAST_TEMPERATURE = 1e-6
LOSSES = ("infonce", "hinge")
KEYS = ("momentum", "online")
NEGATIVES = ("all", "rank")
PRECISIONS = ("fp32", "bf16")


def _option(default: object, text: str, *, choices: Any = None, bare: object = None) -> Any:
    """A field: default, help, allowed values, and the value of the flag without a value."""
    metadata = {"help": text, "choices": choices, "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of ``sede train``; each is a flag and a TOML key of the same name."""

    data: str = _option("icons", "a prepared set (icons, icons_grouped, emoji) or a folder")
    model: str = _option("vse", "retrieval model", choices=tuple(MODELS))
    direction: str = _option("t2i", "attention of scan", choices=DIRECTIONS)
    focal: str = _option("equal", "focus of bfan", choices=tuple(FOCAL_RULES))
    relations: int = _option(1, "relation blocks of vsrn (4 as published)")
    smoothing: float = _option(0.0, "of the attention of scan and bfan; 0: as published")
    text_embeddings: str = _option(
        "", "NAME: frozen sentence embeddings in <part>_NAME.npy, one row per caption"
    )
    epochs: int = _option(15, "passes over the training captions")
    batch_size: int = _option(64, "captions in each step")
    lr: float = _option(0.0, "learning rate at the start, falling along a cosine; 0: of the model")
    weight_decay: float = _option(1e-4, "AdamW weight decay")
    grad_clip: float = _option(2.0, "largest gradient norm")
    dim: int = _option(0, "width of the embedding; 0: of the model")
    word_dim: int = _option(128, "width of the word embeddings")
    dropout: float = _option(0.2, "dropout probability, 0 to below 1")
    seed: int = _option(0, "of initial weights, order and dropout")
    loss: str = _option("infonce", "contrastive loss", choices=LOSSES)
    temperature: float = _option(0.0, "InfoNCE temperature; 0: of the model")
    margin: float = _option(0.2, "hinge margin")
    weighting: float = _option(
        0.0, "hardness beta in cosine units; 0: all negatives weigh the same", bare=5.0
    )
    bank: int = _option(0, "slots of each memory bank; 0: negatives of the batch only", bare=2048)
    bank_share: float = _option(
        0.0, "share of each batch that has momentum keys and looks into the banks; 0: of the model"
    )
    bank_keys: str = _option(
        "momentum",
        "who encodes keys: momentum encoders, or the model itself (no second forward pass)",
        choices=KEYS,
    )
    bank_weight: float = _option(1.0, "weight of the loss against the banks")
    bank_hardest: int = _option(
        1, "sets that each query of scan and bfan finds and is compared with; 0: the whole bank"
    )
    bank_start: int = _option(0, "first step whose loss sees the banks; they fill just before it")
    momentum: float = _option(0.99, "of the momentum encoders that feed the banks, 0 to 1")
    erase: str = _option(
        "off", "hide the regions attended least or most", choices=SIDES, bare="low"
    )
    erase_rule: str = _option("mean", "which regions count as attended", choices=ERASE_RULES)
    erase_threshold: float | None = _option(None, "of the rules that take one")
    erase_pass: str = _option(
        "replace", "erase always, in training only, or in a second training pass", choices=PASSES
    )
    erase_weight: float = _option(0.5, "weight of the second pass")
    batch_negatives: str = _option(
        "all",
        "under torchrun: negatives of the whole batch, or of each rank's part",
        choices=NEGATIVES,
    )
    precision: str = _option("fp32", "of the encoders: bf16 is autocast", choices=PRECISIONS)
    patience: int = _option(0, "stop after so many epochs without a better dev rSum; 0: never")
    checkpoint_every: int = _option(200, "steps between checkpoints inside an epoch")
    threads: int = _option(0, "CPU threads of torch; 0: its own choice")
    workers: int = _option(0, "processes that read batches ahead of the steps; 0: none")
    compile: str = _option("off", "torch.compile the step", choices=("off", "on"), bare="on")
    device: str = _option("cpu", "torch device")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        for name, value in MODELS[self.model].defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        for name, bounds in _BOUNDS.items():
            _check_bounds(name, getattr(self, name), *bounds)
        if self.temperature < _LEAST_TEMPERATURE:
            raise UserError(
                f"temperature must be at least {_LEAST_TEMPERATURE:g}, got {self.temperature}."
            )
        for name, top in (("dropout", 1.0), ("momentum", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise UserError(f"{name} must be from 0 to below 1, got {getattr(self, name)}.")
        if not 0 < self.bank_share <= 1:
            raise UserError(f"bank_share must be above 0, at most 1, got {self.bank_share}.")
        if self.lr * self.weight_decay >= 1:
            raise UserError(
                f"lr times weight_decay must be below 1, got {self.lr} x {self.weight_decay}: each "
                "step would take away more than a weight has; lower one of the two."
            )
        if self.batch_size == 1 and not self.bank:
            raise UserError(
                "batch_size 1 has no negatives without a bank, so nothing would be learned: raise "
                "batch_size or set bank."
            )
        if self.bank and self.bank_hardest > self.bank:
            raise UserError(
                f"bank_hardest must be at most the {self.bank} slots of the bank, "
                f"got {self.bank_hardest}."
            )
        if self.loss == "hinge" and self.weighting > 0:
            raise UserError(
                "weighting weighs the negatives of InfoNCE; the hinge has only the hardest one: "
                "drop one of the two."
            )
        if self.erase != "off":
            _check_threshold(self.erase_rule, self.erase_threshold)

    @property
    def erasing(self) -> Erasing | None:
        """What the model erases."""
        if self.erase == "off":
            return None
        return Erasing(self.erase, self.erase_rule, self.erase_threshold, self.erase_pass)

    @property
    def title(self) -> str:
        """The model and its modules, for folder names and tables: ``vse+erase+bank``."""
        parts = [self.model]
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        for name in MODELS[self.model].options:
            if name != "smoothing" and getattr(self, name) != fields[name]:
                parts[0] += f"-{getattr(self, name)}"
        parts += ["erase"] if self.erase != "off" else []
        parts += ["bank"] if self.bank else []
        parts += ["weighting"] if self.weighting else []
        return "+".join(parts)

    def to_json(self) -> str:
        """For ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _check_bounds(name: str, value: float, low: float, closed: bool, high: float) -> None:
    inside = value >= low if closed else value > low  # false for NaN
    if not inside:
        bound = f"{low} or more" if closed else f"above {low}"
        raise UserError(f"{name} must be {bound}, got {value}.")
    if value == math.inf:
        raise UserError(f"{name} must be finite, got {value}.")
    if value > high:
        top = f"{high:g}" if isinstance(high, float) else str(high)
        raise UserError(f"{name} must be at most {top}, got {value}.")


def _check_threshold(rule: str, threshold: float | None) -> None:
    """What ``attention_erase`` takes as threshold, before a run begins."""
    if rule in RULES_WITHOUT_THRESHOLD:
        if threshold is not None:
            raise UserError(
                f"erase_rule {rule!r} takes no erase_threshold, got {threshold}: leave it out, or "
                "choose the rule absolute, relative, topk or quantile."
            )
        return
    wants = {
        "absolute": "a finite number",
        "relative": "a share from 0 to 1",
        "topk": "a whole number of regions, 1 or more",
        "quantile": "a quantile from 0 to 1",
    }[rule]
    if threshold is None:
        raise UserError(f"erase_rule {rule!r} needs erase_threshold: {wants}.")
    fits = math.isfinite(threshold)
    if rule in ("relative", "quantile"):
        fits = fits and 0 <= threshold <= 1
    elif rule == "topk":
        fits = fits and threshold >= 1 and threshold == int(threshold)
    if not fits:
        raise UserError(f"erase_threshold of the rule {rule!r} must be {wants}, got {threshold}.")


def _types(field: dataclasses.Field[Any]) -> tuple[type, bool]:
    """The type of a setting's values, and whether None is one too."""
    types = typing.get_args(field.type) or (field.type,)
    return next(kind for kind in types if kind is not NoneType), NoneType in types


def _typed(field: dataclasses.Field[Any], value: object) -> object:
    """The value in the field's type, or an error that names both."""
    expected, optional = _types(field)
    kind = expected.__name__
    if value is None and optional:
        return None
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        large = math.inf if value > 0 else -math.inf
        value = float(value) if abs(value) < 1 << 1000 else large
    if not isinstance(value, expected) or isinstance(value, bool):
        kinds = {"str": "text", "int": "an int", "float": "a number"}
        raise UserError(f"{field.name} must be {kinds[kind]}, got {value!r}.")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def from_mapping(values: dict[str, Any], where: str) -> TrainConfig:
    """Settings from a TOML or JSON table; an unknown key gets the nearest known one."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    renamed = _underscored(values, where)
    for key in renamed:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            other = ": remove it, or take the version of sede-kernels that has it."
            hint = f"; did you mean {near[0]}?" if near else other
            raise UserError(f"{where} has an unknown setting {key!r}{hint}")
    return TrainConfig(**renamed)


def _underscored(values: object, where: str) -> dict[str, Any]:
    """A table with hyphens in its names made underscores."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold a table of settings, got {_kind_of(values)}.")
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in renamed:
            raise UserError(f"{where} has the setting {name!r} twice: once with a hyphen.")
        renamed[name] = value
    return renamed


def check_switches(flags: Collection[str], config: TrainConfig, processes: int = 1) -> None:
    """Refuse flags about what is off: whoever gives them expects it to be on.

    Args:
        flags: names that were given by hand.
        config: the settings with them.
        processes: of the run.

    Raises:
        UserError: a flag that is not the usual value, of a module that is off.
    """
    usual = TrainConfig(model=config.model)
    if "batch_negatives" in flags and config.batch_negatives == "rank" and processes == 1:
        raise UserError(
            "--batch-negatives rank does nothing in one process: start several by torchrun, or "
            "leave it out."
        )
    for switch, prefix, off in (
        ("erase", "erase_", config.erase == "off"),
        ("bank", "bank_", not config.bank),
    ):
        for name in flags:
            if off and name.startswith(prefix) and getattr(config, name) != getattr(usual, name):
                flag = name.replace("_", "-")
                raise UserError(
                    f"--{flag} does nothing without --{switch}: add --{switch}, or leave it out."
                )


def _kind_of(value: object) -> str:
    names = {list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file of settings."""
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError("--config needs tomli: run `pip install tomli`, or use flags.") from error

    try:
        values = toml.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"there is no settings file {path}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    return _underscored(values, str(path))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a setting; a flag that is not given leaves no value."""
    for field in dataclasses.fields(TrainConfig):
        kind, _ = _types(field)
        choices, bare = field.metadata["choices"], field.metadata["bare"]
        text = field.metadata["help"]
        if choices:
            text += f" ({', '.join(choices)})"
        usual = "none" if field.default in ("", None) else field.default
        text += f" [{usual}" + (f"; the bare flag: {bare}]" if bare is not None else "]")
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            metavar=kind.__name__.upper(),
            **({"nargs": "?", "const": bare} if bare is not None else {}),
        )
