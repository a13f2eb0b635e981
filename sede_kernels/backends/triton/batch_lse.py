"""In-batch negatives: the pass of ``bank_lse`` over the other keys, and its backward."""

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._chunks import STEP
from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.bank_lse import sums
from sede_kernels.backends.triton.kernels.batch_lse import _batch_lse_bwd_kernel
from sede_kernels.types import Bank, BatchSums, Match, SideGradients, Want

#: Columns of a gradient that one program sums up; wider rows recompute s for each slice.
WIDEST_SLICE = {"half": 256, "tf32": 128, "ieee": 64}


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps: none, the backward forms s again."""
    return 0


def batch_lse(
    query: Tensor, key: Tensor, scales: Tensor, match: Match, want: Want, keep: bool
) -> BatchSums:
    """See ``sede_kernels.ops.batch_lse``."""
    problem, keys = Problem.of(query, key), Bank(key, ids=match.ids)
    found = sums(problem, query, keys, scales, match, want, in_batch=True)
    nothing = found.lse.new_empty((0,))
    return BatchSums(found.lse, found.moment, found.negatives, found.hardest, nothing)


def batch_lse_backward(
    grad_lse: Tensor,
    lse: Tensor,
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
) -> SideGradients:
    """See ``sede_kernels.ops.batch_lse``. Two launches; s is recomputed tile by tile."""
    factor = (grad_lse * grad_scales.unsqueeze(1)).contiguous()
    problem = Problem.of(query, key)
    return batch_gradients(problem, [(query, key)], factor, lse.contiguous(), scales, match)


def batch_gradients(
    problem: Problem,
    batches: list[tuple[Tensor, Tensor]],
    factor: Tensor,
    lse: Tensor,
    scales: Tensor,
    match: Match,
    *,
    upstream: Tensor | None = None,
    flag: Tensor | None = None,
    side_step: int = 0,
) -> SideGradients:
    """What in-batch negatives add to queries and keys, (B, D) fp32, or (2, B, D) of two batches.

    Two batches have the same layouts and dtypes.
    ``factor`` and ``lse`` (E, B) lie ``side_step`` apart for the second batch; ``upstream``, () or
    (B,), multiplies the factors. ``flag``: whether the batch counts.
    """
    (query, key), (query_2, key_2) = batches[0], batches[-1]
    two = len(batches) == 2
    B, D = query.shape
    shape = (2, B, D) if two else (B, D)
    grad_query, grad_key = (
        torch.empty(shape, dtype=torch.float32, device=query.device) for _ in range(2)
    )
    if B == 0 or D == 0:
        return SideGradients(grad_query, grad_key)
    kind = problem.kind
    slice_d = WIDEST_SLICE[kind]
    step = 0 if upstream is None or not upstream.ndim else upstream.stride(0)

    def run(config: launch.Config) -> None:
        grid = (-(-B // config.rows), -(-D // slice_d), len(batches))
        for own, other, own_2, other_2, out, transposed in (
            (query, key, query_2, key_2, grad_query, False),
            (key, query, key_2, query_2, grad_key, True),
        ):
            _batch_lse_bwd_kernel[grid](
                own,
                other,
                own_2 if two else None,
                other_2 if two else None,
                factor,
                lse,
                upstream,
                flag,
                scales,
                match.ids,
                match.limit,
                out,
                B,
                D,
                *own.stride(),
                *other.stride(),
                side_step,
                step,
                SIDES=len(batches),
                E=scales.shape[0],
                SELECT=match.select,
                HAS_IDS=match.ids is not None,
                HAS_LIMIT=match.limit is not None,
                TRANSPOSED=transposed,
                WHOLE=slice_d >= D,
                **problem.operands,
                BLOCK_R=config.rows,
                BLOCK_C=config.cols,
                BLOCK_D=slice_d if slice_d >= D else STEP[kind],
                SLICE_D=slice_d,
                **config.options,
            )

    with on_device(query):
        run(problem.choose("batch_lse_backward", kind, (B, D), run))
    return SideGradients(grad_query, grad_key)
