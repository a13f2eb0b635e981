"""The state of a bank that several ranks hold: how it is saved, and dealt anew to other ranks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sede_kernels.backends.shards import fetched, gather_into, group_of, together
from sede_kernels.checks import MOST, is_integer
from sede_kernels.types import EMPTY, Shard

#: A stamp is (number of the enqueue call << CALL_BITS) + place among its keys, from 1.
CALL_BITS = 32
ROWS = ("rows", "row_scale", "lengths", "ids", "stamps")
_LOAD = "load_state_dict of a sharded bank"


def as_part(value: Tensor, shard: Shard) -> Tensor:
    """The rows here as a DTensor over the rows of all ranks, ``Shard(0)``.

    DTensor gives the first ranks the larger part and the last the rest; where the bank is dealt
    more evenly, the part itself says where it belongs.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Along
    from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

    mesh = DeviceMesh.from_group(group_of(shard), value.device.type)
    shape = torch.Size((shard.size, *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    local: Tensor = value.detach()
    if shard.size % shard.world not in (0, shard.world - 1):
        at = (shard.offset, *(0 for _ in value.shape[1:]))
        local = LocalShardsWrapper([local], [at])
    part: Tensor = DTensor.from_local(
        local, mesh, [Along(0)], run_check=False, shape=shape, stride=stride
    )
    return part


def local_part(value: Tensor) -> Tensor:
    """The rows here of ``as_part``; any other tensor as it is."""
    if type(value) is Tensor or not hasattr(value, "to_local"):
        return value
    local: Any = value.to_local()
    shards = getattr(local, "local_shards", None)
    found: Tensor = local if shards is None else shards()[0]
    return found


def stamps_of_ring(ids: Tensor, ptr: int) -> Tensor:
    """Stamps (K,) of a bank that kept none: one call stored everything, the pointer last."""
    size = ids.shape[0]
    age = (torch.arange(size, device=ids.device) - ptr) % size
    filled = ids != EMPTY
    return torch.where(filled, (1 << CALL_BITS) + age + 1, 0)


def newest(stamps: Tensor) -> int:
    """The slot after the one that was written last; 0 before any."""
    size = stamps.shape[0]
    latest = int(stamps.max()) if size else 0
    return (int(stamps.argmax()) + 1) % size if latest else 0


class _Deal(NamedTuple):
    """Where the rows come from: the n-th, oldest first, goes to rank n % W, slot n // W."""

    sources: Tensor  # (n,) their numbers among the rows of all ranks
    steps: Tensor  # (n,) the calls that stored them


def _deal(stamps: Tensor, saved_by: int) -> _Deal:
    """The written rows by the call that stored them, then by rank, then by place."""
    size = stamps.shape[0]
    share, more = divmod(size, saved_by)
    shares = [share + (rank < more) for rank in range(saved_by)]
    counts = torch.tensor(shares, device=stamps.device)
    rank = torch.repeat_interleave(torch.arange(saved_by, device=stamps.device), counts)
    order = stamps.argsort(stable=True)
    order = order[rank[order].argsort(stable=True)]
    order = order[(stamps >> CALL_BITS)[order].argsort(stable=True)]
    order = order[stamps[order] > 0]
    return _Deal(order, stamps[order] >> CALL_BITS)


def _number(given: Mapping[str, Tensor], name: str, least: int, most: int = MOST) -> int:
    """A counter of a state dict.

    Raises:
        ValueError: it is no integer, or outside [least, most].
    """
    value = given[name]
    if value.ndim or not is_integer(value.dtype):
        raise ValueError(f"{name} must be () torch.int64, got {tuple(value.shape)} {value.dtype}")
    number = int(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {number}")
    return number


def _checked_rows(parts: dict[str, Tensor], shard: Shard, slots: int) -> None:
    """Refuse rows that do not belong together.

    Raises:
        ValueError: those of neither the whole bank nor this part; stamps that no bank writes.
    """
    ids = parts["ids"]
    if ids.ndim != 1 or not is_integer(ids.dtype):
        raise ValueError(f"ids must be (K,) torch.int64, got {tuple(ids.shape)} {ids.dtype}")
    rows = ids.shape[0]
    if rows not in (slots, shard.size):
        raise ValueError(
            f"ids must hold the {slots} slots of this rank or all {shard.size}, got {rows}"
        )
    for name, value in parts.items():
        if value.shape[:1] != ids.shape:
            raise ValueError(f"{name} must have {rows} rows like ids, got {tuple(value.shape)}")
    stamps = parts.get("stamps")
    if stamps is None:
        return
    if stamps.ndim != 1 or not is_integer(stamps.dtype):
        came = f"{tuple(stamps.shape)} {stamps.dtype}"
        raise ValueError(f"stamps must be ({rows},) torch.int64, got {came}")
    if int(stamps.min()) < 0:
        raise ValueError(f"stamps must be >= 0, got {int(stamps.min())}")


def restored(given: Mapping[str, Tensor], shard: Shard, slots: int) -> dict[str, Tensor]:
    """The buffers of one rank, of K_r slots, from a state dict that W or another number saved.

    Args:
        given: what the state dict holds, DTensors over these ranks or whole tensors.
        shard: which part is here.
        slots: K_r.

    Raises:
        ValueError: rows that are those of neither the whole bank nor this part, or that do not
            belong together; counters out of range.

    Cost:
        Dealt anew: one exchange of K stamps and one of the rows, unless the tensors are whole.
    """
    parts = {name: local_part(given[name]) for name in ROWS if name in given}
    _checked_rows(parts, shard, slots)
    ids = parts["ids"]
    whole = ids.shape[0] == shard.size
    if "stamps" not in parts:
        if not whole or "ptr" not in given:
            raise ValueError("stamps are missing")
        parts["stamps"] = stamps_of_ring(ids, _number(given, "ptr", 0, shard.size - 1))
    saved_by = _number(given, "dealt_to", 1, shard.size) if "dealt_to" in given else 1
    step = _number(given, "step", 0) if "step" in given else 1
    found = dict(parts)
    if saved_by != shard.world:
        found = _dealt(parts, shard, slots, saved_by, whole)
    elif whole and slots != shard.size:
        mine = slice(shard.offset, shard.offset + slots)
        found = {name: value[mine] for name, value in parts.items()}
    filled = found["ids"] != EMPTY
    holes = (found["stamps"] > 0) & ~filled
    counters = {"ptr": newest(found["stamps"]), "count": filled.sum(), "rejected": holes.sum()}
    counters |= {"dealt_to": shard.world, "step": step}
    return found | {
        name: torch.as_tensor(value, dtype=torch.int64, device=ids.device)
        for name, value in counters.items()
    }


def _dealt(
    parts: dict[str, Tensor], shard: Shard, slots: int, saved_by: int, whole: bool
) -> dict[str, Tensor]:
    every = parts["stamps"] if whole else _gathered(parts["stamps"], shard)
    deal = _deal(every, saved_by)
    mine = deal.sources[shard.rank :: shard.world]
    found = {}
    for name, value in parts.items():
        rows = value[mine] if whole else fetched(_LOAD, value, mine, shard)
        room = torch.zeros((slots, *value.shape[1:]), dtype=value.dtype, device=value.device)
        if name == "ids":
            room.fill_(EMPTY)
        room[: len(mine)] = rows
        found[name] = room
    place = torch.arange(1, len(mine) + 1, device=mine.device)
    steps = deal.steps[shard.rank :: shard.world]
    found["stamps"][: len(mine)] = (steps << CALL_BITS) + place
    return found


def _gathered(value: Tensor, shard: Shard) -> Tensor:
    """(K, ...) from the (K_r, ...) of every rank."""
    share, more = divmod(shard.size, shard.world)
    padded = value.new_zeros((share + (more > 0), *value.shape[1:]))
    padded[: value.shape[0]] = value
    flat = padded.new_empty((shard.world * padded.shape[0], *value.shape[1:]))
    with together(shard, _LOAD) as group:
        gather_into(flat, padded, group)
    every = flat.view(shard.world, *padded.shape)
    return torch.cat([every[rank, : share + (rank < more)] for rank in range(shard.world)])


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict with the rows of all ranks in plain tensors; every rank calls it alike.

    For a checkpoint in one file. ``load_state_dict`` of the same module takes it on any number of
    ranks, and after ``unsharded`` so do banks that are not sharded.

    Cost:
        Every rank holds the K rows of every bank for a while.
    """
    found: dict[str, Any] = dict(module.state_dict())
    for prefix, bank in module.named_modules():
        shard = getattr(bank, "part", None)
        if not isinstance(shard, Shard) or not shard.group:
            continue
        for name in ROWS:
            key = f"{prefix}.{name}" if prefix else name
            if isinstance(found.get(key), Tensor):
                found[key] = _gathered(local_part(found[key]), shard)
    return found


def unsharded(state: Mapping[str, Any]) -> dict[str, Any]:
    """``whole_state`` of sharded banks as that of a ``MemoryBank`` and a ``FragmentBank``."""
    found = dict(state)
    for key in state:
        prefix, _, name = key.rpartition("stamps")
        if name or not key.endswith("stamps"):
            continue
        names = (*ROWS, "step", "dealt_to")
        given = {n: found.pop(prefix + n) for n in names if prefix + n in found}
        size = given["ids"].shape[0]
        for name, value in restored(given, Shard(size=size), size).items():
            if name not in ("stamps", "step", "dealt_to"):
                found[prefix + name] = value
    return found
