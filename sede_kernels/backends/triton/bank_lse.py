"""Weighted sums over the bank; see ``docs/backends.md`` for the two variants.

Variant A, one pass: 16-bit operands, at most 512 columns, one accumulator; and the pass without
accumulators, for any operands. Variant B, in chunks (``_chunks.py``): everything else.
"""

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._chunks import STEP, chunk_sums
from sede_kernels.backends.triton._host import (
    descriptor,
    on_device,
    padded,
    parts_of_bank,
)
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton._sums import combine, part_sums
from sede_kernels.backends.triton.kernels.bank_lse import _bank_lse_fwd_kernel
from sede_kernels.types import Bank, Match, Sums, Want

#: A row of the bank stays whole in a tile of variant A, padded to a power of two.
NARROWEST, WIDEST = 128, 512
#: Rows of a tile of variant B, which reads the bank twice for each of them.
CHUNK_ROWS = 128


def one_pass(
    query: Tensor, dtype: torch.dtype, accumulators: int, architecture: str, *, scaled: bool
) -> bool:
    """Whether variant A serves the call, or variant B must.

    Of wide rows few fit into a tile, and none on some classes: A serves them where it reads the
    bank no more often than B, and not those of 8 bits (``scaled``), which take more registers.
    """
    rows, dim = query.shape[-2:]
    if accumulators == 0:
        return True
    if accumulators > 1 or dtype == torch.float32 or padded(dim) > WIDEST:
        return False
    if padded(dim) < WIDEST:
        return True
    key = f"{WIDEST}/lean"
    if scaled or not launch.listed(_table(pair=False), key, architecture):
        return False
    tile = launch.candidates(_table(pair=False), key, architecture)[0].rows
    return -(-rows // tile) <= 2 * -(-rows // CHUNK_ROWS)


def table_key(kind: str, dim: int, accumulators: int, variant: str) -> str:
    """Row of ``launch_tables/bank_lse.json``.

    ``variant``: ``lean``; ``static`` with a fixed maximum; ``full`` with statistics, which cost
    registers; ``safe`` for tiles that pass through registers (empty slots, 8-bit rows, odd
    strides).
    """
    return f"{padded(dim, NARROWEST)}/{variant}" if accumulators else f"step/{kind}"


_NO_BANK = (None, None, None, None)


def sums(
    problem: Problem,
    query: Tensor,
    bank: Bank,
    scales: Tensor,
    match: Match,
    want: Want,
    *,
    other: Bank | None = None,
    in_batch: bool = False,
    combined: bool = True,
) -> Sums:
    """The pass of a problem over ``bank``, or over the other rows' keys of a batch (``in_batch``).

    With ``other``, a bank of the same shape, dtype and kind, ``query`` is (2, B, D), the limit
    (2, B), and every result has a leading (2,). Where not ``combined``, a split bank gives the
    sums of its parts, as ``part_sums`` describes them.
    """
    B, D = query.shape[-2:]
    K, E, A = bank.rows.shape[0], scales.shape[0], len(want.accumulate)
    if B == 0 or K == 0:
        return Sums.none(query, E, want)
    full = want.moments or want.hardest or match.limit is not None or E > 2
    scaled = bank.row_scale is not None
    plain = problem.describable and not scaled
    # fp16 would lose the small weights of a fixed maximum; the hardest row needs the running one.
    # With statistics, a tile of 256 columns would spill on sm_90.
    static = want.unit_length and problem.dtype == torch.bfloat16 and plain and A > 0
    static = static and not want.hardest and not (full and D > 128)
    lean = "static" if static else "lean"
    key = table_key(problem.kind, D, A, "safe" if not plain else "full" if full else lean)
    whole = one_pass(query, problem.dtype, A, problem.architecture, scaled=scaled)
    with on_device(query):
        if other is not None and not (whole and _worth_one_launch(key, B, problem.architecture)):
            found = [
                sums(
                    problem.of_side(query[side], its.rows), query[side], its, scales,
                    match.of_side(side), want,
                )
                for side, its in enumerate((bank, other))
            ]  # fmt: skip
            return Sums(*(torch.stack(pair) for pair in zip(*found, strict=True)))
        if not whole:
            return chunk_sums(problem, query, bank, scales, match, want)

        def run(config: launch.Config) -> Sums:
            return _launch(
                problem, query, bank, other, scales, match, want, config,
                static=static, in_batch=in_batch, combined=combined,
            )  # fmt: skip

        table = _table(other is not None)
        return run(problem.choose(table, key, (B, K), run))


def _table(pair: bool) -> str:
    return "bank_lse_pair" if pair else "bank_lse"


def _worth_one_launch(key: str, rows: int, architecture: str) -> bool:
    """Whether one launch for two banks reads them no more often than two launches would.

    To keep track of the side costs registers, so some tiles are smaller.
    """
    if not launch.listed(_table(pair=True), key, architecture):
        return False
    joint, single = (
        launch.candidates(_table(pair), key, architecture)[0].rows for pair in (True, False)
    )
    return -(-rows // joint) <= -(-rows // single)


def _launch(
    problem: Problem,
    query: Tensor,
    bank: Bank,
    other: Bank | None,
    scales: Tensor,
    match: Match,
    want: Want,
    fast: launch.Config,
    *,
    static: bool,
    in_batch: bool,
    combined: bool,
) -> Sums:
    B, D = query.shape[-2:]
    K, E, A = bank.rows.shape[0], scales.shape[0], len(want.accumulate)
    flat = query.flatten(0, -2)
    banks = [bank] if other is None else [bank, other]
    sides = len(banks)
    block_d = padded(D, NARROWEST) if A else STEP[problem.kind]
    # An 8-bit row is left out by its scale, and without O nothing multiplies a masked row.
    passes = [("none", fast)]
    if bank.ids is not None and A and bank.row_scale is None:
        safe = problem.config(_table(other is not None), table_key(problem.kind, D, A, "safe"))
        passes = [("without", fast), ("with", safe)]
    unit = max(config.cols for _, config in passes)
    tiles = -(-K // unit)
    parts = parts_of_bank(-(-B // fast.rows) * sides, tiles, problem.cores)
    part_rows = -(-tiles // parts) * unit
    desc = problem.descriptors
    order = want.order(E)
    final = parts == 1
    found = Sums.empty(query, E, want) if final else part_sums(query, parts, E, want)
    for holes, config in passes:
        read = [
            (
                its.rows,
                descriptor(its.rows, config.cols, block_d) if desc else None,
                its.row_scale,
                its.ids,
            )
            for its in banks
        ]
        _bank_lse_fwd_kernel[(-(-B // config.rows), parts, sides)](
            flat,
            descriptor(flat, config.rows, block_d) if desc else None,
            *read[0],
            *(_NO_BANK if other is None else read[1]),
            scales,
            match.ids,
            match.limit,
            found.hardest,
            found.lse,
            found.moment,
            found.acc,
            found.negatives,
            found.hardest_index,
            B,
            K,
            D,
            *flat.stride(),
            *bank.rows.stride(),
            part_rows // config.cols,
            SIDES=sides,
            E=E,
            A=A,
            SCALE_0=order[0],
            SCALE_1=order[1],
            SCALE_2=order[2],
            SELECT=match.select,
            HAS_ROW_IDS=match.ids is not None,
            HAS_COL_IDS=bank.ids is not None,
            HAS_LIMIT=match.limit is not None,
            IN_BATCH=in_batch,
            MOMENTS=want.moments,
            HARDEST=want.hardest,
            STATIC=static and holes != "with",
            SCALED=bank.row_scale is not None,
            DESC=desc,
            FINAL=final,
            HOLES=holes,
            **problem.operands,
            BLOCK_B=config.rows,
            BLOCK_K=config.cols,
            BLOCK_D=block_d,
            **config.options,
        )
    return found if final or not combined else combine(query, scales, found, want, order)


def bank_lse(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
    """See ``sede_kernels.ops.bank_lse``.

    Variant A: one launch; a second for parts with empty slots where the bank has ids, and one to
    combine the parts where the bank is split. Variant B: two or three launches a chunk.
    """
    return sums(Problem.of(query, bank.rows), query, bank, scales, match, want)


def bank_lse_pair(
    query: Tensor, bank: Bank, other: Bank, scales: Tensor, match: Match, want: Want
) -> Sums:
    """See ``sede_kernels.ops.bank_lse_pair``.

    Variant A: the launches of one bank serve both. Variant B: one bank after the other.
    """
    problem = Problem.of(query, bank.rows, other.rows)
    return sums(problem, query, bank, scales, match, want, other=other)
