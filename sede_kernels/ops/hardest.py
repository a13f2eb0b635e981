"""Top-k valid bank rows by similarity. The gradient of a value is its bank row."""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.bank_lse import result_dtype
from sede_kernels.ops.transforms import once


@torch.library.custom_op("sede::hardest", mutates_args=())
def hardest(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(values [B, k] descending, indices [B, k]); (-inf, -1) where fewer than k are valid."""
    run = resolve("hardest", backend, query, bank)
    values, indices = run(query, bank, row_scale, query_ids, bank_ids, k=k)
    return values, indices


@hardest.register_fake
def _(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], k)
    return (
        query.new_empty(shape, dtype=result_dtype(query)),
        query.new_empty(shape, dtype=torch.int64),
    )


@torch.library.custom_op("sede::hardest_backward", mutates_args=())
def hardest_backward(
    grad_values: Tensor, bank: Tensor, row_scale: Tensor | None, indices: Tensor
) -> Tensor:
    """dq_i = sum_n grad_values[i, n] m_{indices[i, n]}, one [B, D] gather a rank."""
    weight = grad_values.masked_fill(indices < 0, 0.0)
    safe = indices.clamp(min=0)
    if row_scale is not None and bank.shape[0]:
        weight = weight * row_scale[safe]
    total = grad_values.new_zeros((grad_values.shape[0], bank.shape[1]))
    if bank.shape[0]:
        for rank in range(grad_values.shape[1]):
            rows = bank[safe[:, rank]].to(total.dtype)
            rows = rows.masked_fill((indices[:, rank] < 0).unsqueeze(1), 0.0)
            total.addcmul_(rows, weight[:, rank].unsqueeze(1))
    return total


@hardest_backward.register_fake
def _(grad_values: Tensor, bank: Tensor, row_scale: Tensor | None, indices: Tensor) -> Tensor:
    return grad_values.new_empty((grad_values.shape[0], bank.shape[1]))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, bank, row_scale, *_ = inputs
    _, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(bank, row_scale, indices)
    ctx.query_dtype = query.dtype


def _backward(ctx, grad_values, _):  # type: ignore[no-untyped-def]
    bank, row_scale, indices = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 7
    if grad_values is not None and ctx.needs_input_grad[0]:
        grad_query = hardest_backward(grad_values, bank, row_scale, indices)
        # Linear in the query: only the incoming gradient has a derivative of its own.
        grads[0] = once("hardest", grad_query.to(ctx.query_dtype), grad_values)
    return tuple(grads)


hardest.register_autograd(_backward, setup_context=_setup_context)
