"""Everything a run needs to go on as if it had not stopped."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sede_kernels.training import sealed
from sede_kernels.training.files import UserError, write_torch

FORMAT = 1


def rng_state() -> dict[str, Any]:
    """State of torch's random generators: dropout is the only draw that is not seeded by place."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put :func:`rng_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with its checksum; an earlier one stays until the new one is whole."""
    write_torch(path, {"format": FORMAT, **state})


def load(path: Path, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a file of :func:`save`; one of version 0.1.0, without a checksum, loads too.
        needs: entries without which it is of no use.

    Raises:
        UserError: missing, cut short, changed, or not a checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}: put a copy of it back, or train again with another "
            "--out."
        )
    remedy = "put a copy of it back, or train again with another --out."
    reason = sealed.damage(path)
    if reason is not None:
        raise UserError(f"{path} is damaged ({reason}): {remedy}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == FORMAT
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no checkpoint of this package ({type(error).__name__}): {remedy}"
        ) from error
    if not known:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}."
        )
    missing = [name for name in needs if name not in state]
    if missing:
        raise UserError(
            f"{path} has no entry {missing[0]!r}, so it is not what `sede train` writes under this "
            f"name: {remedy}"
        )
    return state


def fill(module: nn.Module, values: Any, path: Path, what: str) -> None:
    """Load the state of a module, or say in one sentence that it does not fit.

    Args:
        module: built by the settings of the run.
        values: its state in the checkpoint.
        path: the checkpoint, for the message.
        what: the module's name, for the message.

    Raises:
        UserError: names or sizes differ.
    """
    try:
        module.load_state_dict(values)
    except Exception as error:  # of any kind: the values may be anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[min(1, len(lines) - 1)].rstrip(".") if lines else type(error).__name__
        raise UserError(misfit(path, f"{what}: {detail[:160]}")) from error


def misfit(path: Path, detail: str) -> str:
    """The sentence for a checkpoint that other settings made."""
    return (
        f"{path} does not fit config.json beside it ({detail}): put the settings back that the run "
        "began with, or start a new run with another --out."
    )
