"""One rank's part of saving a sharded bank and loading it on another number of ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from sede_kernels import MemoryBank, ShardedMemoryBank

SIZE, DIM = 10, 3
STEPS = 4


def rows_of(step: int, rank: int) -> int:
    return (step + 2 * rank) % 4


def keys_of(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Keys whose numbers and ids name step, rank and place."""
    ids = 1000 * step + 100 * rank + torch.arange(rows_of(step, rank))
    return ids.double().unsqueeze(1).expand(-1, DIM) + torch.arange(DIM) / 8, ids


def trained(size: int, group: Any, rank: int, dtype: torch.dtype, steps: int = STEPS) -> Any:
    bank = ShardedMemoryBank(size, DIM, group=group, normalize=False, dtype=dtype)
    for step in range(steps):
        bank.enqueue(*keys_of(step, rank))
    return bank


def survivors(size: int, world: int, steps: int = STEPS) -> list[int]:
    """Ids that W rings keep, by step, then rank, then place: told with lists alone."""
    share, more = divmod(size, world)
    kept = []
    for rank in range(world):
        stored = [(s, rank, p) for s in range(steps) for p in range(rows_of(s, rank))]
        kept += stored[max(0, len(stored) - share - (rank < more)) :]
    return [1000 * s + 100 * r + p for s, r, p in sorted(kept)]


def whole_state(bank: ShardedMemoryBank) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bank.named_buffers() if name != "home"}


def reshard(rank: int, groups: dict[int, Any], folder: Path) -> dict[str, Any]:
    """For each W and W': what each rank of W' holds, and the ids after one more key a rank."""
    found: dict[str, Any] = {}
    for size, old in ((SIZE, 4), (SIZE, 3), (11, 2), (8, 4), (40, 3), (SIZE, 1)):
        path = folder / f"bank-{size}-{old}"
        if rank < old:
            model = nn.ModuleDict({"bank": trained(size, groups[old], rank, torch.float64)})
            dcp.save({"model": model.state_dict()}, checkpoint_id=path, process_group=groups[old])
        dist.barrier()
        for new in (1, 2, 3, 4):
            if rank < new:
                bank = ShardedMemoryBank(
                    size, DIM, group=groups[new], normalize=False, dtype=torch.float64
                )
                other = nn.ModuleDict({"bank": bank})
                state = {"model": other.state_dict()}
                dcp.load(state, checkpoint_id=path, process_group=groups[new])
                other.load_state_dict(state["model"])
                key = f"{size}-{old}-{new}"
                if old == new:
                    before = whole_state(model["bank"])
                    same = whole_state(bank)
                    before["rejected"].zero_()
                    found[f"{key}-same"] = all(
                        torch.equal(value, same[name]) for name, value in before.items()
                    )
                found[key] = {
                    "ids": bank.ids.tolist(),
                    "numbers": bank.rows[:, 1].tolist(),
                    "ptr": int(bank.ptr),
                    "count": len(bank),
                    "step": int(bank.step),
                }
                bank.enqueue(torch.zeros(1, DIM), torch.tensor([7]))
                found[key]["next"] = bank.ids.tolist()
            dist.barrier()
    return found


def others(rank: int, groups: dict[int, Any]) -> dict[str, Any]:
    """State dicts that DCP did not make, int8 rows, and ones that do not fit."""
    plain = MemoryBank(SIZE, DIM, normalize=False)
    for step in range(STEPS):
        plain.enqueue(keys_of(step, 1)[0].float(), keys_of(step, 1)[1])
    bank = ShardedMemoryBank(SIZE, DIM, normalize=False)
    bank.load_state_dict(plain.state_dict())
    found = {"plain": bank.ids.tolist(), "holder": plain.ids.roll(-int(plain.ptr)).tolist()}
    try:
        bank.load_state_dict(MemoryBank(SIZE + 1, DIM).state_dict())
    except RuntimeError as error:
        found["wrong"] = str(error)
    found["kept"] = bank.ids.tolist()
    eights = trained(SIZE, None, rank, torch.int8)
    again = ShardedMemoryBank(SIZE, DIM, dtype=torch.int8, normalize=False)
    again.load_state_dict(eights.state_dict())
    found["int8"] = torch.equal(again.rows, eights.rows) and torch.equal(
        again.row_scale, eights.row_scale
    )
    return found


def work(rank: int, folder: Path) -> dict[str, Any]:
    """Everything of this file."""
    groups = {world: dist.new_group(list(range(world))) for world in (1, 2, 3, 4)}
    return {"reshard": reshard(rank, groups, folder), "others": others(rank, groups)}
