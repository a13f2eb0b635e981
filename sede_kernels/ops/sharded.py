"""The ops of a bank whose rows several ranks hold.

The gradient of the queries is complete after the forward, as for a whole bank: the backward
communicates nothing. The process group travels by name, so a compiled graph holds the calls whole.
"""

from torch import Tensor

from sede_kernels.backends import sharded
from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.bank_lse import input_gradients
from sede_kernels.ops.info_nce import LEARNED, SAVES, formula_by, kept_size
from sede_kernels.types import (
    Bank,
    InfoNCE,
    InfoNCEGradients,
    InfoNCERule,
    Match,
    RankedRows,
    Scalars,
    Shard,
    Side,
    Sums,
    Want,
)

whole_bank, reduced = sharded.whole_bank, sharded.reduced


@op(differentiable=("lse",), withheld=("grad_scales", "wide_query"), run=sharded.lse)
def sharded_lse(
    query: Tensor,
    bank: Bank,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
    want: Want,
    wide_query: Tensor | None,
    shard: Shard,
    backend: str,
) -> Sums:
    """``bank_lse`` over the rows of all ranks; each rank has its own queries (B, D)."""
    return Sums.empty(query, scales.shape[0], want)


@sharded_lse.gradients(saves=("acc", "moment", "grad_scales"))
def _(saved: Saved, grad: Sums) -> dict[str, Tensor | None]:
    return input_gradients("sharded_lse", saved, grad)


@op(differentiable=("values",), run=sharded.hardest)
def sharded_hardest(
    query: Tensor,
    bank: Bank,
    query_ids: Tensor | None,
    k: int,
    with_rows: bool,
    shard: Shard,
    backend: str,
) -> RankedRows:
    """The k most similar rows of all ranks for query (B, D), and those rows for a gradient."""
    return RankedRows.empty(query, k, with_rows)


@sharded_hardest.gradients(saves=("rows",), depends=())
def _(saved: Saved, grad: RankedRows) -> dict[str, Tensor | None]:
    if not saved["with_rows"]:
        raise RuntimeError("sede::sharded_hardest: the forward kept no rows; pass with_rows=True.")
    return {"query": (grad.values.unsqueeze(-1) * saved["rows"]).sum(dim=1)}


@op(differentiable=("loss",), run=sharded.info_nce)
def sharded_info_nce(
    side: Side,
    other: Side | None,
    shard: Shard,
    other_shard: Shard,
    scalars: Scalars,
    rule: InfoNCERule,
    backend: str,
) -> InfoNCE:
    """``info_nce`` of this rank's queries against banks that all ranks hold."""
    sides = 1 if other is None else 2
    return InfoNCE.empty(side.query, sides, rule, kept_size(side, rule, backend))


@op(run=sharded.info_nce_backward)
def sharded_info_nce_backward(
    grad: Tensor,
    table: Tensor,
    query_grad: Tensor,
    kept: Tensor,
    side: Side,
    other: Side | None,
    scalars: Scalars,
    rule: InfoNCERule,
    needs: tuple[int, ...],
    backend: str,
) -> InfoNCEGradients:
    """Gradients of the ``LEARNED`` that ``needs`` has a 1 for, on this rank alone."""
    return InfoNCEGradients.empty(grad, side, other, needs)


sharded_info_nce.gradients(saves=SAVES, depends=LEARNED)(formula_by(sharded_info_nce_backward))
