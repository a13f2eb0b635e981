"""``bank_lse`` for two banks of one shape, each with queries of its own: images and texts.

Everything of a side has a leading 2. The queries of both sides share ids: row i of either is of
pair i. A GPU takes both banks in one launch.
"""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.bank_lse import input_gradients, keep_for_backward, result_dtype


@torch.library.custom_op("sede::bank_lse_pair", mutates_args=())
def bank_lse_pair(
    query: Tensor,
    bank: Tensor,
    other_bank: Tensor,
    row_scale: Tensor | None,
    other_row_scale: Tensor | None,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    other_bank_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    accumulate: list[int],
    moments: bool,
    hardest: bool,
    unit_length: bool,
    backend: str,
    wide_query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse [2, E, B], moment [2, E|0, B], acc [2, A, B, D], count [2, B], top, top_index [2, B|0]).

    Of query [2, B, D] and banks [K, D] of one layout, with query_ids [B] and limit [2, B];
    ``wide_query`` as in ``bank_lse``.
    """
    run = resolve("bank_lse_pair", backend, query, bank)
    lse, moment, acc, count, top, top_index = run(
        query,
        bank,
        other_bank,
        row_scale,
        other_row_scale,
        scales,
        query_ids,
        bank_ids,
        other_bank_ids,
        limit,
        select=select,
        accumulate=tuple(accumulate),
        moments=moments,
        hardest=hardest,
        unit_length=unit_length,
    )
    return lse, moment, acc, count, top, top_index


@bank_lse_pair.register_fake
def _(
    query: Tensor,
    bank: Tensor,
    other_bank: Tensor,
    row_scale: Tensor | None,
    other_row_scale: Tensor | None,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    other_bank_ids: Tensor | None,
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
    _, rows, dim = query.shape
    exponents = scales.shape[0]
    lse = query.new_empty((2, exponents, rows), dtype=dtype)
    moment = query.new_empty((2, exponents if moments else 0, rows), dtype=dtype)
    acc = query.new_empty((2, len(accumulate), rows, dim), dtype=dtype)
    count = query.new_empty((2, rows), dtype=torch.int64)
    top = query.new_empty((2, rows if hardest else 0), dtype=dtype)
    top_index = query.new_empty((2, rows if hardest else 0), dtype=torch.int64)
    return lse, moment, acc, count, top, top_index


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, _, _, _, _, scales, grad_scales, *_, accumulate, _, _, _, _, wide = inputs
    keep_for_backward(ctx, query, wide, scales, grad_scales, accumulate, output)


def _backward(ctx, grad_lse, *_):  # type: ignore[no-untyped-def]
    grads: list[Tensor | None] = [None] * 18
    grads[ctx.query_at], scales = input_gradients(
        ctx, grad_lse, "bank_lse_pair", for_query=ctx.needs_input_grad[ctx.query_at],
        for_scales=ctx.needs_input_grad[5],
    )  # fmt: skip
    grads[5] = None if scales is None else scales.sum(dim=0)
    return tuple(grads)


bank_lse_pair.register_autograd(_backward, setup_context=_setup_context)
