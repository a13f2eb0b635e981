"""One bank for all ranks: gather the keys before they are enqueued.

Each rank holds a whole bank. With ``gather_keys`` every rank enqueues the same rows in the same
order, so the banks stay equal without a broadcast; without it each rank keeps a bank of its own
keys, which is cheaper and K / world_size as fresh. Keys carry no gradient, so DDP's averaging of
gradients is all there is: the loss of a rank is over its own queries, and its gradient scale does
not depend on the number of ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def gather_keys(
    keys: Tensor, ids: Tensor | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor | None]:
    """Keys and ids of every rank, in rank order; batches may differ in size.

    Args:
        keys: (N, D) keys of this rank, N >= 0, same D and dtype on every rank.
        ids: (N,) integers, or None on every rank.
        group: process group; None for the default one. Without ``torch.distributed`` initialised
            the arguments come back as they are.

    Returns:
        (sum N, D) keys and (sum N,) ids or None, equal on every rank.

    Raises:
        ValueError: ids do not match the keys.

    Cost:
        Two collectives (three with ids); the sizes are read on the host.

    Example:
        >>> gather_keys(torch.ones(2, 3))[0].shape
        torch.Size([2, 3])
    """
    if ids is not None and ids.shape != keys.shape[:1]:
        raise ValueError(
            f"gather_keys: ids must be ({keys.shape[0]},), one a key, got {tuple(ids.shape)}."
        )
    if not (dist.is_available() and dist.is_initialized()):
        return keys, ids
    world = dist.get_world_size(group)
    size = torch.tensor([keys.shape[0]], device=keys.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    dist.all_gather(sizes, size, group=group)
    counts = [int(count) for count in sizes]
    longest = max(counts)
    gathered = _gather_padded(keys, longest, counts, group)
    return gathered, None if ids is None else _gather_padded(ids, longest, counts, group)


def _gather_padded(
    local: Tensor, longest: int, counts: list[int], group: dist.ProcessGroup | None
) -> Tensor:
    padded = local.new_zeros((longest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
