"""What a loss needs of its negatives: the pass over the bank, and over the rest of the batch."""

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.functional._exponents import Exponents, safe_logaddexp
from sede_kernels.functional._rows import Rows
from sede_kernels.types import Bank, Match, Sums, Want


def bank_pass(
    query: Rows, bank: Bank, exponents: Exponents, match: Match, want: Want, backend: str
) -> Sums:
    """The negatives of the bank.

    The row sums are for gradients alone: a kernel may weigh rows in the operands' precision.
    Moments are fp32 sums.
    """
    if bank.rows.shape[0] == 0:
        no_rows = want._replace(accumulate=())
        empty = Sums.none(query.wide.detach(), exponents.scales.shape[0], no_rows)
        shape = (len(want.accumulate), *query.wide.shape)
        return empty._replace(acc=empty.lse.new_zeros(()).expand(shape))
    return ops.bank_lse.bank_lse(
        query.operand,
        bank,
        exponents.scales,
        exponents.grad_scales,
        match,
        want,
        query.carrier,
        backend,
    )


def alike(queries: tuple[Rows, Rows], banks: tuple[Bank, Bank]) -> bool:
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
    banks: tuple[Bank, Bank],
    exponents: Exponents,
    matches: tuple[Match, Match],
    want: Want,
    backend: str,
) -> tuple[Sums, Sums]:
    """The negatives of two banks that are ``alike``, each for its own queries, in one pass.

    ``matches`` have ids and selection in common.
    """
    match, other = matches
    if match.limit is not None and other.limit is not None:
        match = match._replace(limit=torch.stack([match.limit, other.limit]))
    carried = any(query.carrier is not None for query in queries)
    found = ops.bank_lse_pair.bank_lse_pair(
        torch.stack([query.operand for query in queries]),
        *banks,
        exponents.scales,
        exponents.grad_scales,
        match,
        want,
        torch.stack([query.wide for query in queries]) if carried else None,
        backend,
    )
    first, second = (Sums(*(value[side] for value in found)) for side in (0, 1))
    return first, second


def with_batch(
    found: Sums,
    query: Rows,
    positive: Rows,
    exponents: Exponents,
    match: Match,
    *,
    counts: bool | Tensor,
    backend: str,
) -> Sums:
    """The negatives of the bank and those of the batch together, where the batch ``counts``.

    Moments and row sums stay those of the bank.
    """
    hardest = found.hardest.shape[0] > 0
    keep = torch.is_grad_enabled() and (query.wide.requires_grad or positive.wide.requires_grad)
    batch = ops.batch_lse.batch_lse(
        query.operand,
        positive.operand,
        exponents.scales,
        exponents.grad_scales,
        match,
        exponents.want(hardest=hardest, unit_length=False)._replace(accumulate=()),
        keep,
        query.carrier,
        positive.carrier,
        backend,
    )
    lse, negatives, top = batch.lse, batch.negatives, batch.hardest
    if isinstance(counts, Tensor):
        lse, top = (torch.where(counts, value, -torch.inf) for value in (lse, top))
        negatives = torch.where(counts, negatives, 0)
    index = found.hardest_index
    if hardest:
        index = torch.where(top > found.hardest, -1, index)
        top = torch.maximum(found.hardest, top)
    return found._replace(
        lse=safe_logaddexp(found.lse, lse),
        negatives=found.negatives + negatives,
        hardest=top,
        hardest_index=index,
    )
