"""Settings that may change where a run is resumed, on purpose and on record.

Some settings are free: no weight and no bank depends on them, so ``config.json`` may be edited.
Some steer the learning: they change by a flag beside ``--resume``, and the change is noted. All
others are as the run began.
"""

import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sede_kernels import jsonl
from sede_kernels.training import checkpoint
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError, write_text

FREE = (
    "data",
    "epochs",
    "patience",
    "checkpoint_every",
    "threads",
    "workers",
    "compile",
    "device",
)
STEERING = ("lr", "weight_decay", "grad_clip", "temperature")
#: One line a change: the step, and the setting's old and new value.
FILE = "changes.jsonl"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_flags(names: Collection[str]) -> None:
    """Refuse flags beside ``--resume`` that cannot change in a run.

    Raises:
        UserError: names the flag and those that can.
    """
    may = (*FREE, *STEERING)
    for name in names:
        if name not in may:
            raise UserError(
                f"--resume takes {_flag(name)} from the run; what may be given with it is "
                f"{', '.join(map(_flag, may))}."
            )


def compare(
    path: Path, began: Mapping[str, Any], config: TrainConfig, given: Collection[str]
) -> dict[str, list[Any]]:
    """Compare the settings of a checkpoint with those that a run is to go on with.

    Args:
        path: the checkpoint.
        began: its settings.
        config: those of now.
        given: names that were given by hand.

    Returns:
        Old and new value of each setting of ``STEERING`` that was changed by hand.

    Raises:
        UserError: a setting differs that may not, or that nobody gave by hand.
    """
    now, changed = asdict(config), {}
    for name, value in began.items():
        if name in FREE or name not in now or now[name] == value:
            continue
        if name not in STEERING:
            raise UserError(checkpoint.misfit(path, f"{name} was {value!r}, is {now[name]!r}"))
        if name not in given:
            out = shlex.quote(str(path.parent))
            raise UserError(
                f"{path} was made with {name} {value!r} and config.json beside it says "
                f"{now[name]!r}: put it back, or change it on purpose by `sede train --resume "
                f"{out} {_flag(name)} {now[name]!r}`."
            )
        changed[name] = [value, now[name]]
    return changed


def note(out: Path, config: TrainConfig, step: int, changed: Mapping[str, list[Any]]) -> None:
    """Write the settings of a run that goes on with others, and tell what changes from here on."""
    if changed:
        jsonl.append(out / FILE, {"step": step, **changed})
        told = (f"{name} {old!r} becomes {new!r}" for name, (old, new) in changed.items())
        print(f"From step {step + 1} on: {', '.join(told)}", file=sys.stderr)
    write_text(out / "config.json", config.to_json())
