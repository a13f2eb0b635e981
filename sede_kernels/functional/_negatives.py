"""What a loss needs of its negatives: the pass over the bank, and over the rest of the batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.functional._bank_argument import BankTensors
from sede_kernels.functional._exponents import Exponents, safe_logaddexp
from sede_kernels.functional._rows import Rows


class Negatives(NamedTuple):
    """Log-sum-exp at each exponent, how many there are, and the hardest, if asked for."""

    lse: Tensor  # [E, B]
    number: Tensor
    top: Tensor
    top_index: Tensor


def bank_pass(
    query: Rows,
    bank: BankTensors,
    ids: Tensor | None,
    exponents: Exponents,
    *,
    limit: Tensor | None,
    select: str,
    hardest: bool,
    unit_length: bool,
    backend: str,
    moments: bool = False,
) -> tuple[Negatives, Tensor, Tensor]:
    """The negatives of the bank, moments (E, B) if asked for, and weighted row sums (A, B, D).

    The row sums are for gradients alone: a kernel may weigh rows in the operands' precision.
    Moments are fp32 sums.
    """
    if bank.rows.shape[0] == 0:
        return _no_negatives(query, exponents, hardest=hardest)
    moments = moments or (torch.is_grad_enabled() and exponents.scales.requires_grad)
    lse, moment, acc, count, top, top_index = ops.bank_lse.bank_lse(
        query.operand,
        bank.rows,
        bank.row_scale,
        exponents.scales,
        exponents.grad_scales,
        ids,
        bank.ids,
        limit,
        select,
        exponents.accumulate,
        moments,
        hardest,
        unit_length and exponents.bounded,
        backend,
        query.carrier,
    )
    return Negatives(lse, count, top, top_index), moment, acc


def alike(queries: tuple[Rows, Rows], banks: tuple[BankTensors, BankTensors]) -> bool:
    """Whether one pass can take both banks: shapes, dtypes and layouts must agree."""
    (query, other_query), (bank, other) = queries, banks
    return (
        bank.rows.shape[0] > 0
        and bank.rows.shape == other.rows.shape
        and bank.rows.dtype == other.rows.dtype
        and bank.rows.stride() == other.rows.stride()
        and (bank.row_scale is None) == (other.row_scale is None)
        and (bank.ids is None) == (other.ids is None)
        and query.operand.shape == other_query.operand.shape
        and query.operand.dtype == other_query.operand.dtype
    )


def bank_pass_pair(
    queries: tuple[Rows, Rows],
    banks: tuple[BankTensors, BankTensors],
    ids: Tensor | None,
    exponents: Exponents,
    *,
    limits: tuple[Tensor, Tensor] | None,
    select: str,
    hardest: bool,
    unit_length: bool,
    backend: str,
) -> tuple[Negatives, Negatives]:
    """The negatives of two banks that are ``alike``, each for its own queries, in one pass."""
    bank, other = banks
    moments = torch.is_grad_enabled() and exponents.scales.requires_grad
    carried = any(query.carrier is not None for query in queries)
    lse, _, _, count, top, top_index = ops.bank_lse_pair.bank_lse_pair(
        torch.stack([query.operand for query in queries]),
        bank.rows,
        other.rows,
        bank.row_scale,
        other.row_scale,
        exponents.scales,
        exponents.grad_scales,
        ids,
        bank.ids,
        other.ids,
        None if limits is None else torch.stack(limits),
        select,
        exponents.accumulate,
        moments,
        hardest,
        unit_length and exponents.bounded,
        backend,
        torch.stack([query.wide for query in queries]) if carried else None,
    )
    return (
        Negatives(lse[0], count[0], top[0], top_index[0]),
        Negatives(lse[1], count[1], top[1], top_index[1]),
    )


def _no_negatives(
    query: Rows, exponents: Exponents, *, hardest: bool
) -> tuple[Negatives, Tensor, Tensor]:
    """What a pass over an empty bank finds."""
    rows, dim = query.wide.shape
    top_rows = rows if hardest else 0
    nothing = exponents.grad_scales.new_full((1,), -torch.inf)
    found = Negatives(
        nothing.expand(exponents.scales.shape[0], rows),
        torch.zeros(rows, dtype=torch.int64, device=query.wide.device),
        nothing.expand(top_rows),
        torch.full((top_rows,), -1, dtype=torch.int64, device=query.wide.device),
    )
    zero = nothing.new_zeros(1)
    moment = zero.expand(exponents.scales.shape[0], rows)
    return found, moment, zero.expand(len(exponents.accumulate), rows, dim)


def with_batch(
    found: Negatives,
    query: Rows,
    positive: Rows,
    ids: Tensor | None,
    exponents: Exponents,
    *,
    limit: Tensor | None,
    select: str,
    hardest: bool,
    counts: bool | Tensor,
    backend: str,
) -> Negatives:
    """The negatives of the bank and those of the batch together, where the batch ``counts``."""
    moments = torch.is_grad_enabled() and exponents.scales.requires_grad
    keep = torch.is_grad_enabled() and (query.wide.requires_grad or positive.wide.requires_grad)
    lse, _, count, top, _ = ops.batch_lse.batch_lse(
        query.operand,
        positive.operand,
        exponents.scales,
        exponents.grad_scales,
        ids,
        limit,
        select,
        moments,
        hardest,
        keep,
        backend,
        query.carrier,
        positive.carrier,
    )
    if isinstance(counts, Tensor):
        lse, top = (torch.where(counts, value, -torch.inf) for value in (lse, top))
        count = torch.where(counts, count, 0)
    top_index = found.top_index
    if hardest:
        top_index = torch.where(top > found.top, -1, top_index)
        top = torch.maximum(found.top, top)
    return Negatives(safe_logaddexp(found.lse, lse), found.number + count, top, top_index)
