"""Weighted sums over the bank in one pass; see ``docs/backends.md`` for the variants."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends.triton import WIDEST_HALF, WIDEST_SINGLE, launch
from sede_kernels.backends.triton._bank_kernels import _bank_lse_fwd_kernel
from sede_kernels.backends.triton._combine_kernels import _bank_lse_combine_kernel
from sede_kernels.backends.triton._host import (
    MAX_PARTS,
    describable,
    descriptor,
    on_device,
    operand_dtype,
    operand_kind,
    padded,
    parts_of_bank,
    precision,
    triton_dtype,
)

COMBINE = {"PARTS": MAX_PARTS, "BLOCK_S": 32, "BLOCK_D": 128}
COMBINE_OPTIONS = {"num_warps": 4, "num_stages": 2}
#: Columns of a tile where the dimension is walked in steps, which serves passes without O.
STEP = {"half": 64, "tf32": 32, "ieee": 32}


class Sums(NamedTuple):
    """What one pass gives; fp32, count and index int64."""

    lse: Tensor  # (E, B)
    moment: Tensor  # (E, B) or (0, B)
    acc: Tensor  # (A, B, D)
    count: Tensor  # (B,)
    top: Tensor  # (B,) or (0,)
    top_index: Tensor  # (B,) or (0,)


def _empty(query: Tensor, exponents: int, accumulators: int, moments: bool, top: bool) -> Sums:
    rows, dim = query.shape
    kept = rows if top else 0
    return Sums(
        query.new_full((exponents, rows), -torch.inf, dtype=torch.float32),
        query.new_zeros((exponents if moments else 0, rows), dtype=torch.float32),
        query.new_zeros((accumulators, rows, dim), dtype=torch.float32),
        query.new_zeros((rows,), dtype=torch.int64),
        query.new_full((kept,), -torch.inf, dtype=torch.float32),
        query.new_full((kept,), -1, dtype=torch.int64),
    )


def tile_width(dim: int, kind: str) -> tuple[int, bool]:
    """(columns of a tile, whether they hold a whole row)."""
    whole = padded(dim, 64)
    most = WIDEST_HALF if kind == "half" else WIDEST_SINGLE
    return (whole, True) if whole <= most else (STEP[kind], False)


def sums(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    limit: Tensor | None,
    *,
    select: str,
    accumulate: tuple[int, ...] = (),
    moments: bool = False,
    hardest: bool = False,
    in_batch: bool = False,
) -> Sums:
    """The pass over ``bank``, or over the other rows' keys of a batch (``in_batch``)."""
    B, D = query.shape
    K, E, A = bank.shape[0], scales.shape[0], len(accumulate)
    if B == 0 or K == 0:
        return _empty(query, E, A, moments, hardest)
    dtype = operand_dtype(query, bank)
    kind = operand_kind(dtype)
    block_d, whole = tile_width(D, kind)
    architecture, cores = launch.device_class(query.device)
    # Without O the tiles of one accumulator fit as well; statistics on top cost registers.
    flags = "full" if moments or hardest or limit is not None or E > 2 else "lean"
    key = f"{kind}/{block_d}/{max(A, 1)}/{flags}" if whole else f"{kind}/step/0/{flags}"
    fast = launch.candidates("bank_lse", key, architecture)[0]
    tiles = -(-K // fast.cols)
    parts = parts_of_bank(-(-B // fast.rows), tiles, cores)
    part_rows = -(-tiles // parts) * fast.cols
    use_desc = architecture in ("sm_90", "sm_100") and describable(query) and describable(bank)
    # An 8-bit row is left out by its scale, and without O nothing multiplies a masked row.
    checked = bank_ids is not None and A > 0 and row_scale is None
    passes = [("without" if checked else "none", fast)]
    if checked:
        slow = launch.candidates("bank_lse", f"{kind}/{block_d}/{A}/holes", architecture)[0]
        passes.append(("with", slow))
    order = [*accumulate, *(e for e in range(E) if e not in accumulate), 0, 0, 0]
    options = query.new_empty
    final = parts == 1
    lead = () if final else (parts,)
    f32, i64 = torch.float32, torch.int64
    peak = options((*lead, B) if hardest or not final else (0,), dtype=f32)
    lse = options((*lead, E, B), dtype=f32)
    moment = options((*lead, E if moments else 0, B), dtype=f32)
    acc = options((*lead, A, B, D), dtype=f32)
    count = options((*lead, B), dtype=i64)
    index = options((*lead, B) if hardest else (0,), dtype=i64)
    with on_device(query):
        for holes, config in passes:
            desc = use_desc and holes != "with"
            _bank_lse_fwd_kernel[(-(-B // config.rows), parts)](
                query,
                descriptor(query, config.rows, block_d) if desc else None,
                bank,
                descriptor(bank, config.cols, block_d) if desc else None,
                row_scale,
                scales,
                query_ids,
                bank_ids,
                limit,
                peak,
                lse,
                moment,
                acc,
                count,
                index,
                B,
                K,
                D,
                *query.stride(),
                *bank.stride(),
                part_rows // config.cols,
                E=E,
                A=A,
                SCALE_0=order[0],
                SCALE_1=order[1],
                SCALE_2=order[2],
                SELECT=select,
                HAS_ROW_IDS=query_ids is not None,
                HAS_COL_IDS=bank_ids is not None,
                HAS_LIMIT=limit is not None,
                IN_BATCH=in_batch,
                MOMENTS=moments,
                HARDEST=hardest,
                SCALED=row_scale is not None,
                WHOLE=whole,
                DESC=desc,
                FINAL=final,
                HOLES=holes,
                OPERAND=triton_dtype(dtype),
                PRECISION=precision(),
                BLOCK_B=config.rows,
                BLOCK_K=config.cols,
                BLOCK_D=block_d,
                **config.options,
            )
        if final:
            return Sums(lse, moment, acc, count, peak, index)
        out = Sums(
            options((E, B), dtype=f32),
            options((E if moments else 0, B), dtype=f32),
            options((A, B, D), dtype=f32),
            options((B,), dtype=i64),
            options((B if hardest else 0,), dtype=f32),
            options((B if hardest else 0,), dtype=i64),
        )
        grid = (B, -(-D // COMBINE["BLOCK_D"]) if A else 1)
        _bank_lse_combine_kernel[grid](
            scales,
            peak,
            lse,
            moment,
            acc,
            count,
            index,
            *out,
            parts,
            B,
            D,
            E=E,
            A=A,
            ACC_0=order[0],
            ACC_1=order[1],
            MOMENTS=moments,
            HARDEST=hardest,
            **COMBINE,
            **COMBINE_OPTIONS,
        )
    return out


def bank_lse(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    limit: Tensor | None,
    *,
    select: str,
    accumulate: tuple[int, ...],
    moments: bool,
    hardest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``sede_kernels.ops.bank_lse``. One launch; a second for parts with empty slots where the bank has
    ids, and one to combine the parts where the bank is split.

    Two accumulators of 512 columns do not fit the registers: they take two passes.
    """
    wide = padded(query.shape[1], 64) >= WIDEST_HALF
    most = 1 if wide else 2
    options: dict[str, Any] = {"select": select, "moments": moments, "hardest": hardest}
    tensors = (query, bank, row_scale)
    mask = (query_ids, bank_ids, limit)
    found = sums(*tensors, scales, *mask, accumulate=accumulate[:most], **options)
    if len(accumulate) > most:
        rest = scales[accumulate[1] : accumulate[1] + 1]
        second = sums(*tensors, rest, *mask, select=select, accumulate=(0,))
        found = found._replace(acc=torch.cat([found.acc, second.acc]))
    return found
