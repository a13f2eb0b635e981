"""What to watch of a loss with banks, written to TensorBoard."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sede_kernels.bank import EMPTY, MemoryBank
from sede_kernels.checks import check_count
from sede_kernels.functional import InfoNCEStats

#: Rows of a bank that are compared at a time for the rank of the positive.
BLOCK = 8192


class _Side(NamedTuple):
    """One direction: its statistics and the bank of the other modality."""

    name: str
    stats: InfoNCEStats
    bank: MemoryBank


class BankMonitor:
    """Writes the numbers that tell whether banks, ids and weights do what they should.

    For each direction (``image_to_text``, ``text_to_image``): ``loss``; ``positive`` and
    ``hardest``, the mean similarities of the right key and of the hardest negative; ``first``, the
    share of rows whose key beats every negative; ``masked``, the share of stored and in-batch rows
    that are no negatives because they show the same thing; and ``rank``, the median rank of the
    right key among the stored negatives, where the embeddings are given. For each bank ``fill``,
    the share of slots that hold a key, and ``age``, the steps since its oldest key came.
    ``temperature`` and ``loss``. Of a bank that ranks share, ``rank``, ``fill`` and ``age`` are of
    the rows here, and ``masked`` takes the parts of the others to be as full.

    Args:
        writer: anything with ``add_scalar(name, value, step)``, as TensorBoard's SummaryWriter.
        criterion: a ``SEDELoss``, or anything with its ``image_bank``, ``text_bank``, ``warm``.
        every: steps between two points; between them nothing is read from the device.
        prefix: of the names.

    Cost:
        At a point one synchronisation with the device a number; the rank compares the batch with
        every stored key.

    Example:
        >>> from sede_kernels import SEDELoss
        >>> class Printer:
        ...     def add_scalar(self, name, value, step):
        ...         if name.endswith("fill"):
        ...             print(name, round(value, 2), step)
        >>> criterion = SEDELoss(8, 4)
        >>> monitor = BankMonitor(Printer(), criterion)
        >>> image, text, ids = torch.eye(4), torch.eye(4), [0, 1, 2, 3]
        >>> loss, stats = criterion(image, text, ids=ids, return_stats=True)
        >>> criterion.enqueue(image, text, ids=ids)
        >>> monitor(0, loss, stats)
        bank/image_bank/fill 0.5 0
        bank/text_bank/fill 0.5 0
    """

    def __init__(
        self, writer: Any, criterion: Any, *, every: int = 50, prefix: str = "bank"
    ) -> None:
        for name in ("image_bank", "text_bank"):
            if not isinstance(getattr(criterion, name, None), MemoryBank):
                raise TypeError(
                    f"BankMonitor: criterion must have a MemoryBank {name}, as SEDELoss has, got "
                    f"{type(criterion).__name__}."
                )
        if not hasattr(writer, "add_scalar"):
            raise TypeError(
                "BankMonitor: writer must have add_scalar(name, value, step), got "
                f"{type(writer).__name__}."
            )
        self.writer = writer
        self.criterion = criterion
        self.every = check_count("BankMonitor", "every", every, least=1)
        self.prefix = prefix

    @torch.no_grad()
    def __call__(
        self,
        step: int,
        loss: Tensor,
        stats: tuple[InfoNCEStats, InfoNCEStats],
        *,
        image: Tensor | None = None,
        text: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        """Write the numbers of this step, if its turn has come.

        Args:
            step: number of the step.
            loss: what the criterion returned.
            stats: what it returned with ``return_stats=True``.
            image: (B, D) embeddings, for the rank; call before ``enqueue`` then.
            text: (B, D).
            ids: (B,) as given to the criterion.
        """
        if step % self.every:
            return
        self._write("loss", loss.float().mean(), step)
        nce = getattr(self.criterion, "nce", None)
        if nce is not None:
            self._write("temperature", nce.temperature, step)
        sides = (
            _Side("image_to_text", stats[0], self.criterion.text_bank),
            _Side("text_to_image", stats[1], self.criterion.image_bank),
        )
        for side, query in zip(sides, (image, text), strict=True):
            for name, value in self._of(side, query, ids).items():
                self._write(f"{side.name}/{name}", value, step)
        rows = max(len(stats[0].loss), 1)
        for name in ("image_bank", "text_bank"):
            bank = getattr(self.criterion, name)
            self._write(f"{name}/fill", bank.count / bank.rows.shape[0], step)
            self._write(f"{name}/age", bank.count / rows, step)

    def _of(self, side: _Side, query: Tensor | None, ids: Tensor | None) -> dict[str, Tensor]:
        """The numbers of one direction."""
        stats, rows = side.stats, len(side.stats.loss)
        some = stats.negatives > 0
        warm = getattr(self.criterion, "warm", None)
        count, shard = side.bank.count, side.bank.shard
        if shard is not None and shard.group:
            count = count * shard.size / side.bank.rows.shape[0]
        stored = count if warm is None else torch.where(warm, count, 0)
        inside = self._in_batch(warm) * max(rows - 1, 0)
        expected = (stored + inside).clamp(min=1)
        found = {
            "loss": stats.loss.mean(),
            "positive": stats.positive.mean(),
            "hardest": stats.hardest[some].mean(),
            "first": (stats.positive > stats.hardest).float().mean(),
            "masked": 1.0 - stats.negatives.float().mean() / expected,
        }
        if query is not None:
            found["rank"] = self._rank(side, query, ids, stored > 0).float().median()
        return found

    def _in_batch(self, warm: Tensor | None) -> Tensor:
        """Whether the other rows of the batch count, as 0 or 1."""
        nce = getattr(self.criterion, "nce", None)
        chosen = nce is not None and bool(nce.options.get("in_batch_negatives"))
        if chosen or warm is None:
            return torch.tensor(int(chosen), device="cpu")
        return (~warm).long()

    @staticmethod
    def _rank(side: _Side, query: Tensor, ids: Tensor | None, counts: Tensor) -> Tensor:
        """(B,) rank from 1 of the right key among the stored negatives; ties are ahead of it."""
        known = None if ids is None else torch.as_tensor(ids, device=query.device).unsqueeze(1)
        right = side.stats.positive.unsqueeze(1).to(torch.float32)
        ahead = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        bank = side.bank
        for start in range(0, bank.rows.shape[0], BLOCK):
            part = slice(start, start + BLOCK)
            rows, owner = bank.rows[part].float(), bank.ids[part]
            if bank.row_scale is not None:
                rows = rows * bank.row_scale[part].unsqueeze(1)
            counted = (owner != EMPTY).expand(len(query), -1)
            if known is not None:
                counted = counted & (owner != known)
            ahead += (counted & (query.float() @ rows.t() >= right)).sum(dim=1)
        return 1 + ahead * counts

    def _write(self, name: str, value: Tensor | float, step: int) -> None:
        self.writer.add_scalar(f"{self.prefix}/{name}", float(value), step)
