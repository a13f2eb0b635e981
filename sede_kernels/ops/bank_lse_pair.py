"""``bank_lse`` for two banks of one shape, each with queries of its own: images and texts.

Everything of a side has a leading 2. The queries of both sides share ids: row i of either is of
pair i. A GPU takes both banks in one launch.
"""

from torch import Tensor

from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.bank_lse import input_gradients
from sede_kernels.types import Bank, Match, Sums, Want


@op(
    decides=("query", "bank_rows"),
    differentiable=("lse",),
    withheld=("grad_scales", "wide_query"),
)
def bank_lse_pair(
    query: Tensor,
    bank: Bank,
    other: Bank,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
    want: Want,
    wide_query: Tensor | None,
    backend: str,
) -> Sums:
    """The pass of query (2, B, D) over two banks of one layout, ids (B,), limit (2, B).

    ``wide_query`` as in ``bank_lse``.
    """
    return Sums.empty(query, scales.shape[0], want)


@bank_lse_pair.gradients(saves=("acc", "moment", "grad_scales"))
def _(saved: Saved, grad: Sums) -> dict[str, Tensor | None]:
    found = input_gradients("bank_lse_pair", saved, grad)
    of_scales = found.get("scales")
    return found if of_scales is None else found | {"scales": of_scales.sum(dim=0)}
