"""accelerate: a criterion with banks among what ``save_state`` saves."""

from typing import Any

from torch import nn

from sede_kernels.integrations._banked import BankState


def register_bank(accelerator: Any, criterion: nn.Module) -> BankState:
    """Let ``accelerator.save_state`` and ``load_state`` take the banks along.

    A criterion that goes through ``accelerator.prepare`` is a model there, and DDP would copy the
    banks of the first rank to all. This moves it to the device and leaves it alone.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        criterion: a module with banks; one with ``bank_state()`` holds the model too, which is
            left out.

    Returns:
        What was registered.

    Raises:
        TypeError: the accelerator cannot register anything, or the criterion is no module.
    """
    if not hasattr(accelerator, "register_for_checkpointing"):
        raise TypeError(
            "register_bank: accelerator must be an accelerate.Accelerator, "
            f"got {accelerator!r:.60}."
        )
    state = BankState("register_bank", criterion)
    criterion.to(accelerator.device)
    accelerator.register_for_checkpointing(state)
    return state
