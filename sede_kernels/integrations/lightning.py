"""Lightning: a callback that keeps a criterion with banks in the checkpoints."""

# mypy: disable-error-code="import-untyped, import-not-found"

import importlib
import sys
from typing import Any

from torch import nn

from sede_kernels.integrations._banked import BankState

#: The package has two names; the one that the program has imported comes first.
NAMES = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)


def _callback() -> Any:
    for name in NAMES:
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "-"):
                raise
    raise ImportError(
        "sede_kernels.integrations.lightning builds on Lightning; run pip install lightning."
    )


_Callback: Any = _callback()


class SaveBank(_Callback):  # type: ignore[misc]
    """Saves a criterion in every checkpoint of the Trainer, and restores it on resume.

    For a criterion that is no attribute of the LightningModule; one that is needs nothing.

    Args:
        criterion: a module with banks, such as ``SEDELoss`` or lightly's ``NTXentLoss`` twin.

    Example:
        >>> trainer = Trainer(callbacks=[SaveBank(criterion)])  # doctest: +SKIP
        >>> trainer.fit(module, data, ckpt_path="last.ckpt")  # doctest: +SKIP
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.bank = BankState("SaveBank", criterion)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """To the device of the run."""
        self.bank.criterion.to(trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's hook: what goes into the checkpoint."""
        return self.bank.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook: what the checkpoint holds."""
        self.bank.load_state_dict(state_dict)
