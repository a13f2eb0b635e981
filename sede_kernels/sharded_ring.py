"""What banks share of which each rank of a process group holds a part: stamps, state, the group."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.backends.shards import fetched, kept_here
from sede_kernels.checks import check_count, readable
from sede_kernels.resharding import CALL_BITS, ROWS, as_part, restored
from sede_kernels.ring import Ring
from sede_kernels.types import Shard

_TOLD = ("ptr", "count", "rejected")
STAMPED: Mapping[str, torch.dtype] = dict.fromkeys(("stamps", "step", "dealt_to"), torch.int64)


class Part(NamedTuple):
    """The part of a bank that is here."""

    shard: Shard
    slots: int  # K_r
    together: bool  # whether torch.distributed was initialised


def part_of(name: str, size: int, group: "dist.ProcessGroup | None", max_batch: int | None) -> Part:
    """This rank's part of K slots: the first K % W ranks hold one more.

    Args:
        name: of the bank, for messages.
        size: K.
        group: process group; None for the default one.
        max_batch: most rows of a call, or None.

    Raises:
        ValueError: not in the group, or fewer slots than ranks.
    """
    if max_batch is not None:
        check_count(name, "max_batch", max_batch, least=1)
    rank, world, label = 0, 1, ""
    together = dist.is_available() and dist.is_initialized()
    if together:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        members: Any = dist.group.WORLD if group is None else group
        label = members.group_name if world > 1 else ""
    if rank < 0:
        raise ValueError(f"{name}: this process is not in the group; make it on its members.")
    if size < world:
        raise ValueError(f"{name}: size must be at least one slot a rank, {world}, got {size}.")
    share, more = divmod(size, world)
    offset = rank * share + min(rank, more)
    batch = -1 if max_batch is None else max_batch
    shard = Shard(rank, world, offset, size, label, batch)
    return Part(shard, share + (rank < more), together)


class ShardedRing(Ring):
    """A ring of which this rank holds a part; goes before the kind of bank among the bases.

    Attributes:
        stamps: (K_r,) int64, when each row was stored; 0 for never.
        step: () int64, calls of ``enqueue`` so far.
        dealt_to: () int64, over how many ranks the rows are dealt.
        size: K.
        part: which part of the whole is here.
    """

    scalars: ClassVar[tuple[str, ...]] = (*Ring.scalars, "step", "dealt_to")

    size: int
    part: Shard
    stamps: Tensor
    step: Tensor
    dealt_to: Tensor

    def _share(self, part: Part, device: torch.device | str | None) -> None:
        """The attributes and buffers of this class, after those of the bank."""
        self.part, self._together, self.size = part.shard, part.together, part.shard.size
        stamps = torch.zeros(part.slots, dtype=torch.int64, device=device)
        self.register_buffer("stamps", stamps)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("dealt_to", torch.full_like(self.step, part.shard.world))
        # They differ from rank to rank, and the stamps tell them.
        self._non_persistent_buffers_set.update(_TOLD)

    def shard_now(self) -> Shard:
        """Which part of the whole is here; without a group in ``eval()`` mode."""
        return self.part if self.training else self.part._replace(group="")

    def _fetched(self, name: str, indices: Tensor, *stored: Tensor) -> list[Tensor]:
        """What is stored under these indices of the whole bank: (B, k, *) from (K_r, *) each.

        Raises:
            ValueError: indices that are no (B, k) int64 or beyond the whole; another group.
        """
        if not isinstance(indices, Tensor) or indices.ndim != 2 or indices.dtype != torch.int64:
            came = type(indices).__name__
            if isinstance(indices, Tensor):
                came = f"{tuple(indices.shape)} {indices.dtype}"
            raise ValueError(f"{name}: indices must be (B, k) int64, got {came}.")
        self._ready()
        self._check_group()
        shard = self.shard_now()
        if shard.group:
            return [fetched(name, one, indices, shard) for one in stored]
        if readable(indices) and indices.numel() and int(indices.max()) >= self.size:
            raise ValueError(
                f"{name}: indices must be below the {self.size} slots of the whole bank, got "
                f"{int(indices.max())}."
            )
        return [kept_here(one, indices, shard) for one in stored]

    def _stamp(self, before: Tensor, number: int) -> None:
        """Count one call that stored ``number`` keys from the slot ``before`` on."""
        slots = self.stamps.shape[0]
        kept = torch.arange(max(0, number - slots), number, device=self.stamps.device)
        self.step.add_(1)
        self.stamps.index_copy_(0, (before + kept) % slots, (self.step << CALL_BITS) + kept + 1)

    def reset_parameters(self) -> None:
        """Empty every slot and forget the steps."""
        super().reset_parameters()
        with torch.no_grad():
            self.dealt_to.fill_(self.part.world)

    def _check_group(self) -> None:
        ready = dist.is_available() and dist.is_initialized()
        name = type(self).__name__
        if self.part.group and not ready:
            raise ValueError(
                f"{name}: it is one of {self.part.world} parts, but torch.distributed is not "
                "initialised; call init_process_group, or load its checkpoint into a new bank."
            )
        if not self._together and ready and dist.get_world_size() > 1:
            raise ValueError(
                f"{name}: it was made before torch.distributed was initialised and holds the whole "
                "bank; make it after init_process_group."
            )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.part.group:
            for name in ROWS:
                value = destination.get(prefix + name)
                if value is not None:
                    destination[prefix + name] = as_part(value, self.part)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        error_msgs: list[str] = arguments[-1]
        given = {
            name: state_dict[prefix + name]
            for name in self._buffers
            if isinstance(state_dict.get(prefix + name), Tensor)
        }
        if "ids" in given:
            try:
                found = restored(given, self.part, self.rows.shape[0])
            except ValueError as error:
                where = f"{type(self).__name__} {prefix[:-1]}".rstrip()
                error_msgs.append(f"{where}: {error}; nothing of it was loaded.")
                return
            told = {name: found.pop(name) for name in _TOLD}
            for name in _TOLD:
                state_dict.pop(prefix + name, None)
            for name, value in found.items():
                state_dict[prefix + name] = value
        wrong = len(error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if "ids" in given and len(error_msgs) == wrong and not self.rows.is_meta:
            for name, value in told.items():
                self._buffers[name] = value.to(self.rows.device)
            self._unsettled = False
            self._drop_non_finite()
