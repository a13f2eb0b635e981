"""Settings of a training run: one dataclass gives the flags, the TOML keys and the checks."""

import argparse
import dataclasses
import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sede_kernels.training.files import UserError
from sede_kernels.training.models import MODELS, Erasing
from sede_kernels.training.models.base import PASSES
from sede_kernels.training.models.bfan import FOCAL_RULES
from sede_kernels.training.models.scan import DIRECTIONS

SIDES = ("off", "low", "high")
_FROM_ZERO = (
    "bank", "bank_hardest", "bank_start", "bank_weight", "weighting", "weight_decay", "patience",
    "threads", "smoothing",
)  # fmt: skip
LOSSES = ("infonce", "hinge")
KEYS = ("momentum", "online")
RULES = ("mean", "prob", "absolute", "relative", "topk", "quantile")


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
        "", "NAME: frozen sentence embeddings in <part>_NAME.npy, a row a caption"
    )
    epochs: int = _option(15, "passes over the training captions")
    batch_size: int = _option(64, "captions a step")
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
    erase_rule: str = _option("mean", "which regions count as attended", choices=RULES)
    erase_threshold: float | None = _option(None, "of the rules that take one")
    erase_pass: str = _option(
        "replace", "erase always, in training only, or in a second training pass", choices=PASSES
    )
    erase_weight: float = _option(0.5, "weight of the second pass")
    patience: int = _option(0, "stop after so many epochs without a better dev rSum; 0: never")
    checkpoint_every: int = _option(200, "steps between checkpoints inside an epoch")
    threads: int = _option(0, "CPU threads of torch; 0: its own choice")
    device: str = _option("cpu", "torch device")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        for name, value in MODELS[self.model].defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        positive = ("epochs", "batch_size", "lr", "grad_clip", "dim", "word_dim", "temperature")
        for name in (*positive, "checkpoint_every", "relations"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in _FROM_ZERO:
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        for name, top in (("dropout", 1.0), ("momentum", 1.0)):
            if not 0 <= getattr(self, name) < top:
                raise UserError(f"{name} must be from 0 to below 1, got {getattr(self, name)}.")
        if not 0 < self.bank_share <= 1:
            raise UserError(f"bank_share must be above 0, at most 1, got {self.bank_share}.")
        if self.loss == "hinge" and self.weighting > 0:
            raise UserError(
                "weighting weighs the negatives of InfoNCE; the hinge has only the hardest one: "
                "drop one of the two."
            )
        needs = self.erase_rule in ("absolute", "relative", "topk", "quantile")
        if self.erase != "off" and needs and self.erase_threshold is None:
            raise UserError(f"erase_rule {self.erase_rule!r} needs erase_threshold.")

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


def _typed(field: dataclasses.Field[Any], value: object) -> object:
    """The value in the field's type, or an error that names both."""
    kind = str(getattr(field.type, "__name__", field.type)).split(" ")[0]
    if value is None and "None" in str(field.type):
        return None
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    expected = {"str": str, "int": int, "float": float}[kind]
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
    renamed = {key.replace("-", "_"): value for key, value in values.items()}
    for key in renamed:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"{where} has an unknown setting {key!r}{hint}")
    return TrainConfig(**renamed)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file of settings."""
    if sys.version_info < (3, 11):
        raise UserError("--config needs Python 3.11 or later, which reads TOML; use flags.")
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no settings file {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a setting; a flag that is not given leaves no value."""
    for field in dataclasses.fields(TrainConfig):
        kind = str(getattr(field.type, "__name__", field.type)).split(" ")[0]
        choices, bare = field.metadata["choices"], field.metadata["bare"]
        text = field.metadata["help"]
        if choices:
            text += f" ({', '.join(choices)})"
        text += f" [{field.default}" + (f"; the bare flag: {bare}]" if bare is not None else "]")
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type={"str": str, "int": int, "float": float}[kind],
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            metavar=kind.upper(),
            **({"nargs": "?", "const": bare} if bare is not None else {}),
        )
