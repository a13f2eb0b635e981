"""Passes over a bank whose rows several ranks hold, with the kernels of any backend.

Queries go to all ranks, each makes one pass over its rows, and the partial sums come home to the
rank that asked. All ranks of the group make each call alike.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.backends._info_nce import Passes, around
from sede_kernels.backends._info_nce_row import reduce
from sede_kernels.backends._pair import in_two_passes
from sede_kernels.backends.registry import resolve
from sede_kernels.backends.shards import (
    combined,
    everyone,
    first_of,
    gather_into,
    global_indices,
    held_rows,
    rows_of_others,
    to_owner,
    together,
)
from sede_kernels.types import (
    Bank,
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Match,
    RankedRows,
    Scalars,
    Shard,
    Side,
    Sums,
    Want,
    result_dtype,
)

LOSS, SEARCH, TOTAL = "loss of a sharded bank", "search of a sharded bank", "mean of a sharded loss"


def lse(
    query: Tensor,
    bank: Bank,
    scales: Tensor,
    match: Match,
    want: Want,
    shard: Shard,
    backend: str,
) -> Sums:
    """``bank_lse`` over the rows of all ranks."""
    run = resolve("bank_lse", backend, query, bank.rows)
    if not shard.group:
        found: Sums = run(query, bank, scales, match, want)
        return found._replace(hardest_index=global_indices(found.hardest_index, shard))
    wanted = len(want.accumulate), int(want.moments), int(want.hardest)
    every = everyone(LOSS, query, match, shard, wanted)
    if not every.longest:
        return Sums.none(query, scales.shape[0], want)
    local = run(every.query, bank, scales, every.match, want)
    local = local._replace(hardest_index=global_indices(local.hardest_index, shard))
    return combined(LOSS, local, scales, want, shard, every.rows)


def hardest(
    query: Tensor,
    bank: Bank,
    query_ids: Tensor | None,
    k: int,
    with_rows: bool,
    shard: Shard,
    backend: str,
) -> RankedRows:
    """The k most similar rows of all ranks, and those rows if wanted."""
    run = resolve("hardest", backend, query, bank.rows)
    dtype = result_dtype(query)
    if not shard.group:
        found = run(query, bank, query_ids, k)
        indices = global_indices(found.indices, shard)
        asked = indices if with_rows else indices[:, :0]
        return RankedRows(found.values, indices, held_rows(asked, bank, dtype, shard))
    every = everyone(SEARCH, query, Match(query_ids), shard, (int(with_rows), 0, k))
    empty = RankedRows.empty(query, k, with_rows)
    if not every.longest:
        return empty
    found = run(every.query, bank, every.match.ids, k)
    got = to_owner(SEARCH, found.values, global_indices(found.indices, shard), shard)
    values, indices = (part[: every.rows].contiguous() for part in first_of(*got, k))
    rows = empty.rows
    if with_rows:
        rows = rows_of_others(SEARCH, indices, bank, dtype, every.longest, shard)
    return RankedRows(values, indices, rows.contiguous())


def _over_ranks(shard: Shard) -> Callable[[Tensor, float, str], tuple[float | Tensor, Tensor]]:
    """The ``reduce`` of a loss whose mean is that of the rows of all ranks.

    A "mean" is W times the sum here over the row weights of all ranks, a "sum" W times the sum
    here: the mean of the ranks' gradients is then that of one process with all rows.
    """
    if not shard.group:
        return reduce

    def over_ranks(rows: Tensor, focus: float, reduction: str) -> tuple[float | Tensor, Tensor]:
        weight = torch.ones_like(rows)
        with together(shard, TOTAL) as group:
            if focus:
                base = (-torch.expm1(-rows.detach())).clamp(min=0.0)
                if reduction == "mean":
                    largest = torch.cat([base.new_zeros(1), base]).amax()
                    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
                    base = base / torch.where(largest == 0, 1.0, largest)
                weight = base.pow(focus)
            if reduction == "mean":
                total = weight.sum()
                dist.all_reduce(total, group=group)
                weight = weight / torch.where(total == 0, 1.0, total)
        if reduction == "none":
            return weight, weight * rows
        weight = weight * shard.world
        return weight, (weight * rows).sum()

    return over_ranks


def _passes(side: Side, shards: dict[int, Shard], backend: str) -> Passes:
    """The passes of a backend, those over the banks on all ranks that hold them.

    ``shards`` are those of the banks with these rows, by their ``id``.
    """

    def bank_lse(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
        return lse(query, bank, scales, match, want, shards[id(bank.rows)], backend)

    lse_of, backward, kept = (
        resolve(name, backend, side.query, side.positive)
        for name in ("batch_lse", "batch_lse_backward", "batch_lse_kept")
    )
    shared = [shard for shard in shards.values() if shard.group]
    rows = _over_ranks(shared[0] if shared else Shard())
    return Passes(bank_lse, in_two_passes(bank_lse), lse_of, backward, kept, rows)


def info_nce(
    side: Side,
    other: Side | None,
    shard: Shard,
    other_shard: Shard,
    scalars: Scalars,
    rule: InfoNCERule,
    backend: str,
) -> InfoNCE:
    """The weighted InfoNCE of this rank's queries against the banks of all ranks."""
    shards = {id(side.rows): shard}
    if other is not None:
        shards[id(other.rows)] = other_shard
    run, _ = around(_passes(side, shards, backend))
    return run(side, other, scalars, rule)


def info_nce_backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor,
    kept: Tensor,
    side: Side,
    other: Side | None,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    backend: str,
) -> InfoNCEGradients:
    """Its gradients; nothing is communicated."""
    _, run = around(_passes(side, {}, backend))
    return run(grad, table, query_grad, kept, side, other, scalars, rule, needs)


def reduced(
    rows: Tensor, focus: float, reduction: str, shard: Shard
) -> tuple[float | Tensor, Tensor]:
    """Constant weights (B,) of this rank's rows in the loss of all ranks, and the loss."""
    return _over_ranks(shard)(rows, focus, reduction)


def whole_bank(bank: Bank, shard: Shard) -> Bank:
    """The rows of all ranks on each of them: K x D of memory, for ``backend="reference"``."""
    if not shard.group:
        return bank
    share, more = divmod(shard.size, shard.world)

    def gathered(part: Tensor) -> Tensor:
        padded = part.new_zeros((share + (more > 0), *part.shape[1:]))
        padded[: part.shape[0]] = part
        own = padded.reshape(-1).view(torch.uint8)
        every = own.new_empty(shard.world * own.shape[0])
        with together(shard, LOSS) as group:
            gather_into(every, own, group)
        rows = every.view(part.dtype).view(shard.world, *padded.shape)
        return torch.cat([rows[rank, : share + (rank < more)] for rank in range(shard.world)])

    scale = None if bank.row_scale is None else gathered(bank.row_scale)
    ids = None if bank.ids is None else gathered(bank.ids)
    return Bank(gathered(bank.rows), scale, ids)
