"""In-batch negatives: the same sums over the other rows' keys, with a gradient to both sides.

With s_ij = q_i.k_j, j != i: lse(c), moment(c) as in ``bank_lse``. The backward forms s again block
by block, unless a backend keeps a small s where the caller will want a gradient (``keep``); its
``batch_lse_kept`` says how many elements, from the shapes alone:

    dq_i = sum_c g_i(c) r(c) sum_j P_ij(c) k_j        dk_j = sum_c sum_i g_i(c) r(c) P_ij(c) q_i
"""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.bank_lse import result_dtype
from sede_kernels.ops.transforms import once


def _room(query: Tensor, key: Tensor, keep: bool, backend: str) -> Tensor:
    size = resolve("batch_lse_kept", backend, query, key)(query, key) if keep else 0
    return query.new_empty((size,), dtype=result_dtype(query))


@torch.library.custom_op("sede::batch_lse", mutates_args=())
def batch_lse(
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    moments: bool,
    hardest: bool,
    keep: bool,
    backend: str,
    wide_query: Tensor | None = None,
    wide_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse [E, B], moment [E|0, B], count [B], top [B|0], kept s, flat).

    ``wide_query`` and ``wide_key``, in the dtype of the results, get the gradients where they come,
    as in ``bank_lse``.
    """
    run = resolve("batch_lse", backend, query, key)
    kept = _room(query, key, keep, backend)
    lse, moment, count, top = run(
        query,
        key,
        scales,
        query_ids,
        limit,
        select=select,
        moments=moments,
        hardest=hardest,
        kept=kept,
    )
    return lse, moment, count, top, kept


@batch_lse.register_fake
def _(
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    moments: bool,
    hardest: bool,
    keep: bool,
    backend: str,
    wide_query: Tensor | None = None,
    wide_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = result_dtype(query)
    rows = query.shape[0]
    exponents = scales.shape[0]
    lse = query.new_empty((exponents, rows), dtype=dtype)
    moment = query.new_empty((exponents if moments else 0, rows), dtype=dtype)
    count = query.new_empty((rows,), dtype=torch.int64)
    top = query.new_empty((rows if hardest else 0,), dtype=dtype)
    return lse, moment, count, top, _room(query, key, keep, backend)


@torch.library.custom_op("sede::batch_lse_backward", mutates_args=())
def batch_lse_backward(
    grad_lse: Tensor,
    lse: Tensor,
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(dq [B, D], dk [B, D]) from the saved log-sum-exps."""
    run = resolve("batch_lse_backward", backend, query, key)
    grad_query, grad_key = run(
        grad_lse, lse, query, key, scales, grad_scales, query_ids, limit, select=select, kept=kept
    )
    return grad_query, grad_key


@batch_lse_backward.register_fake
def _(
    grad_lse: Tensor,
    lse: Tensor,
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    select: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = result_dtype(query)
    return query.new_empty(query.shape, dtype=dtype), query.new_empty(key.shape, dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, scales, grad_scales, query_ids, limit, select, _, _, _, backend, *wide = inputs
    lse, moment, count, top, kept = output
    ctx.mark_non_differentiable(moment, count, top, kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        query, key, scales, grad_scales, query_ids, limit, lse, moment, kept, *wide
    )
    ctx.select = select
    ctx.backend = backend
    # Where the gradients of the queries and the keys go.
    wide_query, wide_key = wide
    ctx.at = 0 if wide_query is None else 11, 1 if wide_key is None else 12


def _backward(ctx, grad_lse, *_):  # type: ignore[no-untyped-def]
    query, key, scales, grad_scales, query_ids, limit, lse, moment, kept, *wide = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 13
    if grad_lse is None:
        return tuple(grads)
    learned = [a if b is None else b for a, b in zip((query, key), wide, strict=True)]
    depends = (grad_lse, *learned, scales)
    if any(ctx.needs_input_grad[at] for at in ctx.at):
        found = batch_lse_backward(
            grad_lse.contiguous(),
            lse,
            kept,
            query,
            key,
            scales,
            grad_scales,
            query_ids,
            limit,
            ctx.select,
            ctx.backend,
        )
        for at, tensor, grad in zip(ctx.at, learned, found, strict=True):
            if ctx.needs_input_grad[at]:
                grads[at] = once("batch_lse", grad.to(tensor.dtype), *depends)
    if ctx.needs_input_grad[2]:
        if moment.shape[0] == 0:
            raise RuntimeError(
                "sede::batch_lse: the forward kept no moments, so there is no gradient of scales; "
                "pass moments=True."
            )
        grads[2] = once("batch_lse", (grad_lse * moment).sum(dim=1), *depends)
    return tuple(grads)


batch_lse.register_autograd(_backward, setup_context=_setup_context)
