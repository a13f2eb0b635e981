"""What a run says of itself while it runs: scalars of steps, a line now and then, the time left."""

import time
from typing import Any

from torch import Tensor, nn

#: Steps between two points of a curve.
EVERY = 10
#: Seconds between two lines where there is no bar to look at.
PATIENCE = 30.0


def fill(objective: nn.Module) -> float | None:
    """Share of the slots of the banks that hold a key; None without banks."""
    for name in ("image_bank", "caption_bank"):
        bank = getattr(objective, name, None)
        if bank is not None:
            return float(bank.count) / int(bank.rows.shape[0])
    return None


def spoken(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def left(seconds: float, done: int, total: int) -> str:
    """Time that the remaining steps take if they go on as those before, or nothing yet."""
    if not done or done >= total:
        return ""
    return f"{spoken(seconds / done * (total - done))} left"


class Curves:
    """Writes points of one run's steps to TensorBoard.

    Args:
        writer: a SummaryWriter.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.told = time.monotonic()

    def step(
        self,
        step: int,
        loss: float,
        *,
        rate: float,
        temperature: float,
        norm: Tensor | None,
        objective: nn.Module,
    ) -> None:
        """Every tenth step: loss, rate, temperature, gradient norm and fill of the banks.

        Args:
            step: of the run, after the update.
            loss: of the step.
            rate: learning rate of the step.
            temperature: of the loss.
            norm: of the gradient before clipping.
            objective: holds the banks.
        """
        if step % EVERY:
            return
        points = {"loss": loss, "rate": rate, "temperature": temperature}
        if norm is not None:
            points["gradient_norm"] = float(norm)
        share = fill(objective)
        if share is not None:
            points["bank_fill"] = share
        for name, value in points.items():
            self.writer.add_scalar(f"step/{name}", value, step)

    def due(self) -> bool:
        """Whether it is time for a line, where there is no bar."""
        now = time.monotonic()
        if now - self.told < PATIENCE:
            return False
        self.told = now
        return True


def epoch_points(writer: Any, record: dict[str, Any], waiting: float) -> None:
    """The points of one epoch.

    Args:
        writer: a SummaryWriter.
        record: the epoch's line in ``metrics.jsonl``.
        waiting: percent of the epoch's training time that waited for data.
    """
    step, dev = record["step"], record["dev"]
    writer.add_scalar("train/loss", record["loss"], step)
    writer.add_scalar("train/waiting_percent", waiting, step)
    writer.add_scalar("dev/rsum", dev["rsum"], step)
    for way in ("i2t", "t2i"):
        for cutoff, recall in zip((1, 5, 10), dev[way], strict=True):
            writer.add_scalar(f"dev/{way}_r{cutoff}", recall, step)
