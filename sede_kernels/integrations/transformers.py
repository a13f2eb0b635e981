"""transformers and sentence-transformers: a callback of their Trainer that saves banks."""

# mypy: disable-error-code="import-untyped, import-not-found"

from pathlib import Path
from typing import Any

from torch import nn

from sede_kernels.integrations._banked import BankState

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("transformers"):
        raise
    raise ImportError(
        "sede_kernels.integrations.transformers builds on transformers; "
        "run pip install transformers."
    ) from error


class SaveBank(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Saves a criterion beside every checkpoint of the Trainer, and restores it on resume.

    For a criterion that is no part of the model: a loss of ``SentenceTransformerTrainer``, or
    ``compute_loss_func`` of the Trainer. A criterion inside the model is saved with it.

    Args:
        criterion: a module with banks, such as the loss of sentence-transformers or ``SEDELoss``.
        resume_from: the checkpoint folder, where it is not ``output_dir/checkpoint-<step>``.

    Raises:
        FileNotFoundError: on resume, from a checkpoint that this callback has not saved.

    Example:
        >>> trainer = SentenceTransformerTrainer(..., callbacks=[SaveBank(loss)])  # doctest: +SKIP
        >>> trainer.train(resume_from_checkpoint=True)  # doctest: +SKIP
    """

    def __init__(self, criterion: nn.Module, resume_from: str | Path | None = None) -> None:
        self.bank = BankState("SaveBank", criterion)
        self.resume_from = resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """To the model's device; after a resume also back to its banks."""
        self.bank.criterion.to(args.device)
        if state.global_step:
            self.bank.load(self._folder(args, state, self.resume_from), args.process_index)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside the checkpoint that the Trainer has written."""
        self.bank.save(self._folder(args, state, None), args.process_index)

    @staticmethod
    def _folder(args: Any, state: Any, given: str | Path | None) -> Path:
        if given is not None:
            return Path(given)
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
