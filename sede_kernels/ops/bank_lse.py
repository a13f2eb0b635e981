"""The core op: log-sum-exps, query gradients and the hardest row in one pass over the bank.

With s_ij = q_i.m_j and V_i the valid slots of query i, for each exponent c of ``scales``:

    lse(c)    = log sum_{j in V_i} exp(c s_ij)
    moment(c) = sum_j P_ij(c) s_ij            P(c) = softmax over V_i of c s
    acc(c)    = sum_j P_ij(c) m_j             so that d lse(c) / d q_i = c acc(c)

The bank has no gradient, hence the query gradient is complete after the forward and the backward
is a row scale. ``grad_scales`` replaces c in it: the detached weights of the weighted InfoNCE need
1/tau acc(1/tau + beta).
"""

from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.transforms import once

#: exp(c (s - 1)) of s in [-1, 1] is a normal fp32 number up to this c.
STATIC_LIMIT = 43.0


def result_dtype(query: Tensor) -> torch.dtype:
    """fp64 for fp64 queries, else fp32: the dtype of every floating result of an op."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


@torch.library.custom_op("sede::bank_lse", mutates_args=())
def bank_lse(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    accumulate: list[int],
    moments: bool,
    hardest: bool,
    unit_length: bool,
    backend: str,
    wide_query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse [E, B], moment [E|0, B], acc [A, B, D], count [B], top [B|0], top_index [B|0]).

    ``wide_query`` is the query in the dtype of the results and gets the gradient in its place, so
    that it is rounded once, with all that is added to it.
    ``unit_length`` promises rows of at most unit length, up to rounding, and exponents of at most
    ``STATIC_LIMIT``: weights relative to s = 1 then neither overflow nor vanish in fp32.
    """
    run = resolve("bank_lse", backend, query, bank)
    lse, moment, acc, count, top, top_index = run(
        query,
        bank,
        row_scale,
        scales,
        query_ids,
        bank_ids,
        limit,
        select=select,
        accumulate=tuple(accumulate),
        moments=moments,
        hardest=hardest,
        unit_length=unit_length,
    )
    return lse, moment, acc, count, top, top_index


@bank_lse.register_fake
def _(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    accumulate: list[int],
    moments: bool,
    hardest: bool,
    unit_length: bool,
    backend: str,
    wide_query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = result_dtype(query)
    rows, dim = query.shape
    exponents = scales.shape[0]
    lse = query.new_empty((exponents, rows), dtype=dtype)
    moment = query.new_empty((exponents if moments else 0, rows), dtype=dtype)
    acc = query.new_empty((len(accumulate), rows, dim), dtype=dtype)
    count = query.new_empty((rows,), dtype=torch.int64)
    top = query.new_empty((rows if hardest else 0,), dtype=dtype)
    top_index = query.new_empty((rows if hardest else 0,), dtype=torch.int64)
    return lse, moment, acc, count, top, top_index


@torch.library.custom_op("sede::bank_lse_backward", mutates_args=())
def bank_lse_backward(
    grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: list[int]
) -> Tensor:
    """Row scale of what the forward kept: dq_i = sum_a grad_lse[a, i] grad_scales[a] acc[a, i].

    Of two banks, all but ``grad_scales`` have a leading 2.
    """
    total = torch.zeros_like(acc.select(-3, 0))
    for slot, exponent in enumerate(accumulate):
        weight = grad_lse.select(-2, exponent) * grad_scales[exponent]
        total.addcmul_(acc.select(-3, slot), weight.unsqueeze(-1))
    return total


@bank_lse_backward.register_fake
def _(grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: list[int]) -> Tensor:
    return torch.empty_like(acc.select(-3, 0))


def keep_for_backward(
    ctx: Any,
    query: Tensor,
    wide_query: Tensor | None,
    scales: Tensor,
    grad_scales: Tensor,
    accumulate: list[int],
    output: tuple[Tensor, ...],
) -> None:
    """What the backward of a pass over one or two banks needs."""
    _, moment, acc, count, top, top_index = output
    ctx.mark_non_differentiable(moment, acc, count, top, top_index)
    ctx.set_materialize_grads(False)
    # The gradient goes to the last argument, the wide query, where there is one.
    ctx.query_at = 0 if wide_query is None else -1
    learned = query if wide_query is None else wide_query
    ctx.save_for_backward(acc, moment, grad_scales, learned, scales)
    ctx.accumulate = list(accumulate)


def input_gradients(
    ctx: Any, grad_lse: Tensor | None, name: str, *, for_query: bool, for_scales: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(gradient of the queries, of the scales), each None where it is not wanted."""
    acc, moment, grad_scales, query, scales = ctx.saved_tensors
    grad_query: Tensor | None = None
    grad_of_scales: Tensor | None = None
    if grad_lse is None:
        return None, None
    if for_query:
        if not ctx.accumulate:
            raise RuntimeError(
                f"sede::{name}: the forward kept no accumulator, so there is no query gradient; "
                "name the exponents in accumulate."
            )
        found = bank_lse_backward(grad_lse.contiguous(), acc, grad_scales, ctx.accumulate)
        grad_query = once(name, found.to(query.dtype), grad_lse, query, scales)
    if for_scales:
        if moment.shape[-2] == 0:
            raise RuntimeError(
                f"sede::{name}: the forward kept no moments, so there is no gradient of scales; "
                "pass moments=True."
            )
        found = (grad_lse * moment).sum(dim=-1)
        grad_of_scales = once(name, found, grad_lse, query, scales)
    return grad_query, grad_of_scales


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, _, _, scales, grad_scales, *_, accumulate, _, _, _, _, wide = inputs
    keep_for_backward(ctx, query, wide, scales, grad_scales, accumulate, output)


def _backward(ctx, grad_lse, *_):  # type: ignore[no-untyped-def]
    grads: list[Tensor | None] = [None] * 15
    grads[ctx.query_at], grads[3] = input_gradients(
        ctx, grad_lse, "bank_lse", for_query=ctx.needs_input_grad[ctx.query_at],
        for_scales=ctx.needs_input_grad[3],
    )  # fmt: skip
    return tuple(grads)


bank_lse.register_autograd(_backward, setup_context=_setup_context)
