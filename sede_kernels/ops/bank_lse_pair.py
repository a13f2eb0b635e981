"""``bank_lse`` for two banks of one shape, each with queries of its own: images and texts.

Everything of a side has a leading 2. The queries of both sides share ids: row i of either is of
pair i. A GPU takes both banks in one launch.
"""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.bank_lse import result_dtype


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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse [2, E, B], moment [2, E|0, B], acc [2, A, B, D], count [2, B], top, top_index [2, B|0]).

    Of query [2, B, D] and banks [K, D] of one layout, with query_ids [B] and limit [2, B].
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
    backend: str,
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


@torch.library.custom_op("sede::bank_lse_pair_backward", mutates_args=())
def bank_lse_pair_backward(
    grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: list[int]
) -> Tensor:
    """Row scale of what the forward kept, [2, B, D]: see ``bank_lse_backward``."""
    total = torch.zeros_like(acc[:, 0])
    for slot, exponent in enumerate(accumulate):
        weight = (grad_lse[:, exponent] * grad_scales[exponent]).unsqueeze(2)
        total.addcmul_(acc[:, slot], weight)
    return total


@bank_lse_pair_backward.register_fake
def _(grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: list[int]) -> Tensor:
    return torch.empty_like(acc[:, 0])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, _, _, _, _, _, grad_scales, *_, accumulate, _, _, _ = inputs
    _, moment, acc, count, top, top_index = output
    ctx.mark_non_differentiable(moment, acc, count, top, top_index)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(acc, moment, grad_scales)
    ctx.accumulate = list(accumulate)
    ctx.query_dtype = query.dtype


def _backward(ctx, grad_lse, *_):  # type: ignore[no-untyped-def]
    acc, moment, grad_scales = ctx.saved_tensors
    grads = [None] * 16
    if grad_lse is None:
        return tuple(grads)
    if ctx.needs_input_grad[0]:
        if not ctx.accumulate:
            raise RuntimeError(
                "sede::bank_lse_pair: the forward kept no accumulator, so there is no query "
                "gradient; name the exponents in accumulate."
            )
        grad_query = bank_lse_pair_backward(grad_lse.contiguous(), acc, grad_scales, ctx.accumulate)
        grads[0] = grad_query.to(ctx.query_dtype)
    if ctx.needs_input_grad[5]:
        if moment.shape[1] == 0:
            raise RuntimeError(
                "sede::bank_lse_pair: the forward kept no moments, so there is no gradient of "
                "scales; pass moments=True."
            )
        grads[5] = (grad_lse * moment).sum(dim=(0, 2))
    return tuple(grads)


bank_lse_pair.register_autograd(_backward, setup_context=_setup_context)
