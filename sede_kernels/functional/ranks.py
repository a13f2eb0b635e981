"""Ranks of right answers in both directions, from blocks of a score matrix that never exists."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.backends.registry import native_look, serves_natively
from sede_kernels.ops.transforms import goes_directly

#: Rows and columns of a block: 8 MB in fp32, twice.
BLOCK = (1024, 2048)

Scores = Callable[[slice, slice], Tensor]
Right = Callable[[slice, slice], "tuple[Tensor, Tensor] | None"]
Both = tuple[Tensor, Tensor]
Count = Callable[[slice, slice, Both, Both], None]


class Comparison(NamedTuple):
    """How blocks of the scores of two sets of rows are formed.

    Attributes:
        scores: of the block (rows, columns).
        count_below: adds, to each row and each column of a block, how many of the same scores lie
            below its bar: (rows, columns, bars, below). None: from the scores.
    """

    scores: Scores
    count_below: Count | None = None


def dot_products(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Comparison:
    """Rows (N, D) with rows (M, D) by their dot products, formed in ``dtype``: fp32 or fp64.

    Native kernels form them and count in one pass, where ``backend="auto"`` would take such.
    """
    native = _native_products(rows, columns)
    if native is not None:
        return native
    return Comparison(lambda down, across: rows[down].to(dtype) @ columns[across].to(dtype).T)


def _native_products(rows: Tensor, columns: Tensor) -> Comparison | None:
    if not (rows.is_cpu and serves_natively("auto") and goes_directly((rows, columns))):
        return None
    form, count = (native_look(name, name) for name in ("block_scores", "count_below"))
    if form is None or count is None:
        return None
    return Comparison(
        lambda down, across: form(rows[down], columns[across]),
        lambda down, across, bars, below: count(rows[down], columns[across], bars, below),
    )


@torch.no_grad()
def best_right_ranks(
    compare: Comparison,
    right: Right,
    shape: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    block: tuple[int, int] = BLOCK,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor]:
    """Rank, from 0, of the best right answer of every row and of every column.

    The rank is the number of wrong answers whose score is not below that of the best right one: a
    tie and a NaN count as ahead. Other right answers do not count.

    Args:
        compare: ``scores`` gives a (rows, columns) tensor, the same each time, which is not written
            to. Blocks without a right answer go to ``count_below`` where there is one.
        right: the right answers inside the block (rows, columns), their row and column numbers
            within it, each once; None where the block has none.
        shape: (N, C) of the whole matrix.
        device: of the scores.
        dtype: of the scores.
        block: largest (rows, columns).
        group: process group whose ranks share the blocks, all with the same arguments; None for
            this process alone.

    Returns:
        (N,) and (C,) int64; -1 where a query has no right answer. Equal on all ranks of the group.

    Cost:
        Each block once, those with a right answer twice. Two blocks of memory and O(N + C). With a
        group one collective of N + C integers.
    """
    rows, columns = shape
    best = [torch.full((n,), -torch.inf, dtype=dtype, device=device) for n in shape]
    number = [torch.zeros(n, dtype=torch.int64, device=device) for n in shape]
    for down, across in _blocks(shape, block, 0, 1):
        pairs = right(down, across)
        if pairs is None:
            continue
        found = compare.scores(down, across)[pairs]
        for side, (where, inside) in enumerate(zip((down, across), pairs, strict=True)):
            best[side][where].scatter_reduce_(0, inside, found, "amax")
            number[side][where].scatter_add_(0, inside, torch.ones_like(inside))
    below = torch.zeros(rows + columns, dtype=torch.int64, device=device)
    sides = below[:rows], below[rows:]
    share = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    flags = torch.empty(block[0] * block[1], dtype=dtype, device=device)
    ones = torch.ones(max(block), dtype=dtype, device=device)
    for down, across in _blocks(shape, block, *share):
        pairs = right(down, across)
        if pairs is None and compare.count_below is not None:
            bars = best[0][down], best[1][across]
            compare.count_below(down, across, bars, (sides[0][down], sides[1][across]))
            continue
        s = compare.scores(down, across)
        # A product with ones adds flags several times as fast as a sum of bools.
        flag = flags[: s.numel()].view(s.shape)
        for side, bar in enumerate((best[0][down].unsqueeze(1), best[1][across])):
            torch.lt(s, bar, out=flag)
            if pairs is not None:
                flag[pairs] = 0
            if side == 0:
                sides[0][down] += (flag @ ones[: s.shape[1]]).to(torch.int64)
            else:
                sides[1][across] += (ones[: s.shape[0]] @ flag).to(torch.int64)
    if group is not None:
        dist.all_reduce(below, group=group)
    ranks = [
        (candidates - known - under).masked_fill(known == 0, -1)
        for candidates, known, under in zip((columns, rows), number, sides, strict=True)
    ]
    return ranks[0], ranks[1]


def _blocks(
    shape: tuple[int, int], block: tuple[int, int], first: int, step: int
) -> Iterator[tuple[slice, slice]]:
    """Every ``step``-th block from ``first`` on, row by row."""
    number = 0
    for top in range(0, shape[0], block[0]):
        for left in range(0, shape[1], block[1]):
            if number % step == first:
                yield (
                    slice(top, min(top + block[0], shape[0])),
                    slice(left, min(left + block[1], shape[1])),
                )
            number += 1
