"""Everything a run needs to go on as if it had not stopped."""

from pathlib import Path
from typing import Any

import torch

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
    """Write a checkpoint; an earlier one stays until the new one is whole."""
    write_torch(path, {"format": FORMAT, **state})


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UserError: missing, cut short, or not a checkpoint of this package.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == FORMAT
    except Exception as error:
        raise UserError(
            f"{path} is damaged or no checkpoint of this package ({type(error).__name__}): "
            "take a copy of it, or train again with another --out."
        ) from error
    if not known:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}."
        )
    return state
