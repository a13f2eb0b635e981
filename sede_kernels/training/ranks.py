"""One run on several processes: who they are, how they end together, how a batch lies over them.

``torchrun`` starts the processes and sets ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. Rank 0
alone writes and prints. Whatever fails first says its sentence; the other ranks leave in silence.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sede_kernels.distributed import Batches as RowsOfRanks
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.training.files import UserError

_FAILED = "sede_train/failed"
_LONGEST_S = 31_536_000  # a year
_GRACE_S = 3.0  # in which whoever failed tells the store so
_LOST = ("connection", "closed by peer", "timed out", "timeout", "broken pipe", "waited in vain")


class Ranks(NamedTuple):
    """This process among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """All processes of the run; None alone."""
        return dist.group.WORLD if self.world > 1 else None

    def rows(self, start: int, count: int) -> slice:
        """Which of ``count`` rows are here, of a batch whose first is the run's ``start``-th.

        Rows are dealt one by one and the deal goes on from batch to batch, so that after any number
        of ragged batches no rank has learned, or stored, two rows more than another.
        """
        return slice((self.rank - start) % self.world, count, self.world)

    def layout(self, start: int, count: int) -> RowsOfRanks:
        """How the ``count`` rows of that batch lie over the ranks, for gathers of them."""
        if self.world == 1:
            return RowsOfRanks([count], 0, None, True)
        sizes = [len(range(count)[self._replace(rank=r).rows(start, count)])
                 for r in range(self.world)]  # fmt: skip
        members: Any = self.group
        return RowsOfRanks(sizes, self.rank, members.group_name, True)

    def mean(self, *values: float) -> list[float]:
        """The mean of each number over the ranks, the same on all of them."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [value / self.world for value in total.tolist()]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def every(self, value: Any) -> list[Any]:
        """``value`` of every rank; small objects only."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def share_buffers(self, module: nn.Module) -> None:
        """The floating buffers of rank 0 on every rank: running statistics differ between them."""
        for buffer in module.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)

    def seed(self, seed: int, step: int = 0) -> None:
        """Dropout of its own on every rank but the first, which draws as one process does."""
        if self.rank:
            torch.manual_seed(seed + 1_000_003 * self.rank + 1_000_000_007 * step & (1 << 63) - 1)


def here() -> Ranks:
    """This process among the others, alone without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def own_first(rows: Tensor, layout: RowsOfRanks, dim: int = 0) -> Tensor:
    """Rows of all ranks, in rank order, turned so that those of this rank come first."""
    return rows if len(layout.sizes) == 1 else rows.roll(-layout.offset, dim)


def scale(layout: RowsOfRanks) -> float:
    """What the sum of a loss here is multiplied by: averaged over ranks it is the mean of all."""
    return len(layout.sizes) / max(layout.total, 1)


@contextmanager
def started() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did; see the module.

    Raises:
        UserError: of the block, on the rank that failed first; or the environment is not that of
            ``torchrun``.
        SystemExit: on the other ranks, with status 1.
    """
    if _number("WORLD_SIZE", 1) == 1 or dist.is_initialized():
        yield here()
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_patience())
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"the processes of this run did not find each other ({reason}): start them by torchrun."
        ) from error
    ranks = here()
    with _silence(ranks), guarded(ranks):
        yield ranks
    dist.destroy_process_group()


def _patience() -> timedelta:
    """How long a rank waits for the others in one exchange."""
    text = os.environ.get("SEDE_RANK_TIMEOUT") or "1800"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_S:
        raise UserError(
            f"SEDE_RANK_TIMEOUT must be a number of seconds above 0, at most {_LONGEST_S:,}, "
            f"got {text!r}."
        )
    return timedelta(seconds=seconds)


def _number(name: str, default: int) -> int:
    """A whole number that ``torchrun`` puts into the environment."""
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise UserError(
            f"{name} must be a whole number, got {text!r}: start the processes by torchrun, or "
            "unset it."
        ) from error


@contextmanager
def guarded(ranks: Ranks) -> Iterator[None]:
    """Whoever fails first raises one sentence; the others end with status 1.

    Raises:
        UserError: of the block; or another rank is lost and none has said why.
        SystemExit: another rank has said why.
    """
    try:
        yield
        ranks.wait()
    except (UserError, BackendUnavailableError, OSError) as error:
        if not _is_first_to_fail():
            sys.exit(1)
        if isinstance(error, OSError):
            raise
        raise UserError(f"rank {ranks.rank} of {ranks.world}: {error}") from error
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in _LOST):
            _is_first_to_fail()
            raise
        if _somebody_failed() or not _is_first_to_fail():
            sys.exit(1)
        raise UserError(
            f"rank {ranks.rank} of {ranks.world} lost another rank, which died or did not come in "
            "time: start the same number of processes, or another, with --resume."
        ) from error


@contextmanager
def _silence(ranks: Ranks) -> Iterator[None]:
    """Only rank 0 prints; what fails is said by ``sede`` itself, outside of this."""
    if ranks.first:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _is_first_to_fail() -> bool:
    """Tell the other ranks; whether none of them told before."""
    try:
        return bool(_store().add(_FAILED, 1) == 1)
    except RuntimeError:  # the store went with the rank that held it
        return False


def _somebody_failed() -> bool:
    with suppress(RuntimeError):
        _store().wait([_FAILED], timedelta(seconds=_GRACE_S))
        return True
    return False
