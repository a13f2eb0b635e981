"""In-batch negatives: the same sums over the other rows' keys, with a gradient to both sides.

With s_ij = q_i.k_j, j != i: lse(c), moment(c) as in ``bank_lse``. The backward forms s again block
by block, unless a backend keeps a small s where the caller will want a gradient (``keep``); its
``batch_lse_kept`` says how many elements, from the shapes alone:

    dq_i = sum_c g_i(c) r(c) sum_j P_ij(c) k_j        dk_j = sum_c sum_i g_i(c) r(c) P_ij(c) q_i
"""

from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops._op import Saved, op
from sede_kernels.types import BatchSums, Match, SideGradients, Want, result_dtype


@op(
    decides=("query", "key"),
    differentiable=("lse",),
    withheld=("grad_scales", "wide_query", "wide_key"),
)
def batch_lse(
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
    want: Want,
    keep: bool,
    wide_query: Tensor | None,
    wide_key: Tensor | None,
    backend: str,
) -> BatchSums:
    """The pass of query (B, D) over the other rows of key (B, D); ``want``: moments and hardest.

    ``wide_query`` and ``wide_key``, in the dtype of the results, get the gradients where they come,
    as in ``bank_lse``.
    """
    kept = resolve("batch_lse_kept", backend, query, key)(query, key) if keep else 0
    return BatchSums.empty(query, scales.shape[0], want, kept)


@op(decides=("query", "key"))
def batch_lse_backward(
    grad_lse: Tensor,
    lse: Tensor,
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
    backend: str,
) -> SideGradients:
    """Both sides (B, D), from the saved log-sum-exps."""
    dtype = result_dtype(query)
    return SideGradients(
        query.new_empty(query.shape, dtype=dtype), key.new_empty(key.shape, dtype=dtype)
    )


@batch_lse.gradients(
    saves=(
        "query", "key", "scales", "grad_scales", "match_ids", "match_limit", "lse", "moment", "kept"
    )
)  # fmt: skip
def _(saved: Saved, grad: BatchSums) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {}
    if saved.needs - {"scales"}:
        sides = batch_lse_backward(
            grad.lse.contiguous(),
            saved["lse"],
            saved["kept"],
            saved["query"],
            saved["key"],
            saved["scales"],
            saved["grad_scales"],
            saved.take("match"),
            saved["backend"],
        )
        # A side that came wide has no gradient of its own.
        by_name = {"query": sides[0], "wide_query": sides[0], "key": sides[1], "wide_key": sides[1]}
        found |= {name: by_name[name] for name in saved.needs - {"scales"}}
    if "scales" in saved.needs:
        if saved["moment"].shape[0] == 0:
            raise RuntimeError(
                "sede::batch_lse: the forward kept no moments, so there is no gradient of scales; "
                "pass moments=True."
            )
        found["scales"] = (grad.lse * saved["moment"]).sum(dim=1)
    return found
