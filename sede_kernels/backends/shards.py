"""What the ranks that share a bank tell each other: queries go out, partial sums come home.

Every function here is called by all ranks of the group alike. Buffers have one size on all ranks:
the rows of the longest batch, b, times the number of ranks, W.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.types import Bank, Match, Shard, Sums, Want

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_EXACT = 1 << 24  # integers below it are exact in fp32
_GRACE_S = 2.0  # in which the other ranks of a call run out of patience too


class Everyone(NamedTuple):
    """The queries of all ranks, padded, one rank after the other."""

    query: Tensor  # (W b, D)
    match: Match  # (W b,)
    rows: int  # of this rank
    longest: int  # b


def group_of(shard: Shard) -> "dist.ProcessGroup":
    """The process group that the shard names."""
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    found: dist.ProcessGroup = resolve(shard.group)
    return found


def gather_into(out: Tensor, own: Tensor, group: "dist.ProcessGroup") -> None:
    """``own`` of every rank, one after the other."""
    renamed = getattr(dist, "all_gather_single", None)  # before 2.13 it had the longer name
    (dist.all_gather_into_tensor if renamed is None else renamed)(out, own, group=group)


def sum_into(out: Tensor, every: Tensor, group: "dist.ProcessGroup") -> None:
    """This rank's part of the sum of ``every`` over the ranks."""
    renamed = getattr(dist, "reduce_scatter_single", None)
    (dist.reduce_scatter_tensor if renamed is None else renamed)(out, every, group=group)


@contextmanager
def together(shard: Shard, call: str) -> Iterator["dist.ProcessGroup"]:
    """A call of all ranks; one that waits in vain says for whom.

    Raises:
        RuntimeError: a rank died or did not come before the group's time-out.
    """
    group = group_of(shard)
    try:
        yield group
    except RuntimeError as error:
        if not isinstance(error, dist.DistError):
            text = str(error).lower()
            if not any(
                word in text for word in ("timed out", "timeout", "connection", "closed by peer")
            ):
                raise
        absent = _absent(shard)
        who = f"rank {', '.join(map(str, absent))}" if absent else "another rank"
        raise RuntimeError(
            f"{call}: rank {shard.rank} of {shard.world} waited in vain for {who}. Every rank must "
            "make this call in every step, with no rows where it has none, and only training calls "
            "are shared: put the model into eval() where one rank works alone."
        ) from error


def _absent(shard: Shard) -> list[int]:
    """The ranks that do not wait in the same call, as far as the store can tell."""
    try:
        store: Any = dist.distributed_c10d._get_default_store()
        name = f"sede_waiting/{shard.group}/"
        store.set(f"{name}{shard.rank}", "here")
        found = []
        deadline = time.monotonic() + _GRACE_S
        for rank in range(shard.world):
            left = max(deadline - time.monotonic(), 0.01)
            try:
                store.wait([f"{name}{rank}"], timedelta(seconds=left))
            except RuntimeError:
                found.append(rank)
        return found
    except Exception:  # the store went with the rank that held it
        return []


def everyone(
    call: str, query: Tensor, match: Match, shard: Shard, wanted: tuple[int, ...]
) -> Everyone:
    """The queries of all ranks with their ids and limits, in one exchange.

    Without ``max_batch`` the sizes go ahead of them, are read on the host, and calls that do not
    fit each other are refused on all ranks.

    Raises:
        ValueError: more rows than ``max_batch``, before any exchange; other dtypes, widths or
            options on some rank.
    """
    rows = query.shape[0]
    longest = shard.max_batch
    if longest < 0:
        longest = max(_sizes(call, query, match, shard, wanted))
    elif rows > longest:
        raise ValueError(
            f"{call}: rank {shard.rank} has {rows} queries but the bank was made with "
            f"max_batch={longest}; raise it on every rank."
        )
    given = [value for value in (match.ids, match.limit, query) if value is not None]
    query, *rest = reversed(_gather(call, given, longest, shard))
    limit = rest.pop(0) if match.limit is not None else None
    ids = rest.pop(0) if match.ids is not None else None
    return Everyone(query, Match(ids, limit, match.select), rows, longest)


def _sizes(
    call: str, query: Tensor, match: Match, shard: Shard, wanted: tuple[int, ...]
) -> list[int]:
    """The batch size of every rank."""
    facts = {
        "columns": query.shape[1],
        "dtype": _DTYPES.index(query.dtype),
        "ids": int(match.ids is not None),
        "margin": int(match.limit is not None),
        **{("gradients", "moments", "statistics")[at]: value for at, value in enumerate(wanted)},
        "call": sum(ord(letter) << (7 * at % 49) for at, letter in enumerate(call + match.select)),
    }
    own = torch.tensor([query.shape[0], *facts.values()], device=query.device)
    every = own.new_empty(shard.world * len(own))
    with together(shard, call) as group:
        gather_into(every, own, group)
    table = every.view(shard.world, -1).tolist()
    for rank, (_, *found) in enumerate(table):
        for name, value, first in zip(facts, found, table[0][1:], strict=True):
            if value != first:
                raise ValueError(
                    f"{call}: rank {rank} and rank 0 do not make the same call, they differ in "
                    f"{name}; every rank must call it alike in every step."
                )
    return [entry[0] for entry in table]


def _gather(call: str, given: list[Tensor], longest: int, shard: Shard) -> list[Tensor]:
    """(W longest, ...) of each, as bytes of one buffer; rows beyond a rank's own are 0."""
    # Wider numbers first, so that each lies at a multiple of its size.
    order = sorted(range(len(given)), key=lambda at: -given[at].element_size())
    parts = []
    for at in order:
        value = given[at]
        padded = value.new_zeros((longest, *value.shape[1:]))
        padded[: value.shape[0]] = value
        parts.append(padded.reshape(-1).view(torch.uint8))
    own = torch.cat(parts)
    own = torch.nn.functional.pad(own, (0, -own.shape[0] % 8))
    flat = own.new_empty(shard.world * own.shape[0])
    with together(shard, call) as group:
        gather_into(flat, own, group)
    every = flat.view(shard.world, -1)
    found: list[Tensor] = list(given)
    start = 0
    for at, sent in zip(order, parts, strict=True):
        value = given[at]
        stop = start + sent.shape[0]
        part = every[:, start:stop].contiguous().view(value.dtype)
        found[at] = part.view(shard.world * longest, *value.shape[1:])
        start = stop
    return found


def combined(call: str, local: Sums, scales: Tensor, want: Want, shard: Shard, rows: int) -> Sums:
    """The sums over all shards for this rank's queries, from those of each for all queries.

    With m = max_r lse_r, or the exponent itself under ``want.unit_length``, and
    w_r = exp(lse_r - m): lse = m + log sum_r w_r; moments and row sums are the means of the shards'
    with weights w_r; the counts add up; the hardest is the largest, the lowest index of equals.
    A shard without a negative has lse -inf and takes no part; without one anywhere lse is -inf and
    the means are 0. Bitwise repeatable for a fixed number of ranks.

    Args:
        call: for messages.
        local: sums over the rows here for the queries of all ranks, (..., W b), one rank after the
            other; ``hardest_index`` among the rows of all ranks.
        scales: (E,) exponents.
        want: what was asked for.
        shard: which rows are here.
        rows: queries of this rank, the first of its b.

    Returns:
        (..., rows).

    Cost:
        One all_reduce of E numbers a query unless ``unit_length``; one reduce_scatter of D an
        accumulator, one number an exponent, another with moments, and the count; one exchange of 2
        numbers where the hardest is wanted.
    """
    lse, moment, acc, negatives, hardest, hardest_index = local
    dtype = lse.dtype
    peak = scales.to(dtype).unsqueeze(1).expand_as(lse) if want.unit_length else lse.clone()
    with together(shard, call) as group:
        if not want.unit_length:
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        base = peak.masked_fill(peak == -torch.inf, 0.0)
        weight = (lse - base).exp()  # [E, W b]
        # In fp32 a count of more than 2^24 rows goes in two parts, each of which adds up exactly.
        parts = [negatives >> 12, negatives & 4095] if shard.size >= _EXACT else [negatives]
        columns = [weight.T, (weight[: moment.shape[0]] * moment).T]
        columns += [weight[e].unsqueeze(1) * acc[slot] for slot, e in enumerate(want.accumulate)]
        columns += [part.to(dtype).unsqueeze(1) for part in parts]
        payload = torch.cat(columns, dim=1)
        own = payload.new_empty((payload.shape[0] // shard.world, payload.shape[1]))
        sum_into(own, payload, group)
    sums = torch.split(own[:rows], [column.shape[1] for column in columns], dim=1)
    total, moments = sums[0].T, sums[1].T  # [E, rows], [E | 0, rows]
    empty = total == 0
    safe = total.masked_fill(empty, 1.0)
    first = shard.rank * own.shape[0]
    whole = (base[:, first : first + rows] + safe.log()).masked_fill(empty, -torch.inf)
    used = enumerate(want.accumulate)
    means = [sums[2 + slot] / safe[e].unsqueeze(1) for slot, e in used]
    counted = sums[2 + len(means) :]
    number = counted[0] * 4096 + counted[1] if len(counted) > 1 else counted[0]
    if want.hardest:
        values, indices = to_owner(call, hardest, hardest_index, shard)
        hardest, hardest_index = (found[:rows, 0] for found in first_of(values, indices, 1))
    return Sums(
        whole.contiguous(),
        (moments / safe[: moments.shape[0]]).contiguous(),
        torch.stack(means) if means else acc.new_empty((0, rows, acc.shape[2])),
        number[:, 0].round().to(torch.int64),
        hardest.contiguous(),
        hardest_index.contiguous(),
    )


def to_owner(call: str, values: Tensor, indices: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """What every rank found for this rank's queries, (b, W k), in rank order, from (W b, k)."""
    pairs = torch.stack([values.double(), indices.double()], dim=-1)
    sent = pairs.reshape(shard.world, values.shape[0] // shard.world, -1).contiguous()
    got = torch.empty_like(sent)
    with together(shard, call) as group:
        dist.all_to_all_single(got, sent, group=group)
    found = got.transpose(0, 1).reshape(sent.shape[1], -1, 2)
    return found[..., 0].to(values.dtype), found[..., 1].to(torch.int64)


def first_of(values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, the first of equals; (-inf, -1) where there are fewer."""
    missing = k - values.shape[1]
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
        indices = torch.nn.functional.pad(indices, (0, missing), value=-1)
    ordered, at = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :k], indices.gather(1, at[:, :k])


def rows_of_others(
    call: str, indices: Tensor, bank: Bank, dtype: torch.dtype, longest: int, shard: Shard
) -> Tensor:
    """The rows (B, k, D) of these indices (B, k), each from the rank that holds it; 0 for -1."""
    asked = indices.new_full((longest, indices.shape[1]), -1)
    asked[: indices.shape[0]] = indices
    every = asked.new_empty((shard.world * longest, indices.shape[1]))
    with together(shard, call) as group:
        gather_into(every, asked, group)
        own = held_rows(every, bank, dtype, shard)
        found = own.new_empty((longest, *own.shape[1:]))
        sum_into(found, own, group)
    return found[: indices.shape[0]]


def held_rows(indices: Tensor, bank: Bank, dtype: torch.dtype, shard: Shard) -> Tensor:
    """The rows (B, k, D) of these indices among all ranks', 0 for those of other ranks."""
    rows = kept_here(bank.rows, indices, shard).to(dtype)
    if bank.row_scale is not None:
        rows = rows * kept_here(bank.row_scale, indices, shard).to(dtype).unsqueeze(-1)
    return rows


def kept_here(stored: Tensor, indices: Tensor, shard: Shard) -> Tensor:
    """(..., *) of these indices among all ranks' rows, from the (K_r, *) here; 0 for all others."""
    at, slots = indices - shard.offset, stored.shape[0]
    others = ((at < 0) | (at >= slots)).view(*at.shape, *(1 for _ in stored.shape[1:]))
    return stored[at.clamp(0, slots - 1)].masked_fill(others, 0)


def global_indices(indices: Tensor, shard: Shard) -> Tensor:
    """Indices of the rows here as those among all ranks' rows; -1 stays."""
    return torch.where(indices >= 0, indices + shard.offset, indices)


def fetched(call: str, stored: Tensor, indices: Tensor, shard: Shard) -> Tensor:
    """What the ranks store under these indices: (..., *) from (K_r, *) on each; 0 for -1.

    Ranks may ask for different numbers of rows. Each row goes from its holder to who asked; how
    many there are is read on the host.

    Raises:
        ValueError: on all ranks, where one of them asks for an index of no rank.
    """
    share, more = divmod(shard.size, shard.world)
    ends = [(rank + 1) * share + min(rank + 1, more) for rank in range(shard.world)]
    flat = indices.reshape(-1)
    places = (flat >= 0).nonzero()[:, 0]
    holder = torch.bucketize(flat[places], torch.tensor(ends, device=flat.device), right=True)
    places = places[holder.argsort(stable=True)]
    asked = torch.bincount(holder, minlength=shard.world + 1)
    asked = torch.where(asked[shard.world] > 0, -1, asked[: shard.world])  # -1 is told to all
    given = torch.empty_like(asked)
    width = stored.shape[1:].numel()
    with together(shard, call) as group:
        dist.all_to_all_single(given, asked, group=group)
        sends, gets = asked.tolist(), given.tolist()
        if -1 in gets:
            raise ValueError(
                f"{call}: indices must be below the {shard.size} slots of all ranks, and those of "
                f"rank {gets.index(-1)} are not."
            )
        wanted = flat.new_empty(sum(gets))
        dist.all_to_all_single(wanted, flat[places], gets, sends, group=group)
        rows = stored[wanted - shard.offset].reshape(sum(gets), width).contiguous()
        answers = rows.new_empty((sum(sends), width))
        sent, got = (part.view(torch.uint8) for part in (rows, answers))
        dist.all_to_all_single(got, sent, sends, gets, group=group)
    out = stored.new_zeros((flat.shape[0], *stored.shape[1:]))
    out[places] = answers.view(-1, *stored.shape[1:])
    return out.view(*indices.shape, *stored.shape[1:])
