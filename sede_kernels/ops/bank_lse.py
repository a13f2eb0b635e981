"""The core op: log-sum-exps, query gradients and the hardest row in one pass over the bank.

With s_ij = q_i.m_j and V_i the valid slots of query i, for each exponent c of ``scales``:

    lse(c)    = log sum_{j in V_i} exp(c s_ij)
    moment(c) = sum_j P_ij(c) s_ij            P(c) = softmax over V_i of c s
    acc(c)    = sum_j P_ij(c) m_j             so that d lse(c) / d q_i = c acc(c)

The bank has no gradient, hence the query gradient is complete after the forward and the backward
is a row scale. ``grad_scales`` replaces c in it: the detached weights of the weighted InfoNCE need
1/tau acc(1/tau + beta).
"""

import torch
from torch import Tensor

from sede_kernels.ops._op import Saved, op
from sede_kernels.types import Bank, Match, Sums, Want

#: exp(c (s - 1)) of s in [-1, 1] is a normal fp32 number up to this c.
STATIC_LIMIT = 43.0


@op(
    decides=("query", "bank_rows"),
    differentiable=("lse",),
    withheld=("grad_scales", "wide_query"),
)
def bank_lse(
    query: Tensor,
    bank: Bank,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
    want: Want,
    wide_query: Tensor | None,
    backend: str,
) -> Sums:
    """The pass of query (B, D) over a bank; gradients to query and scales.

    ``wide_query`` is the query in the dtype of the results and gets the gradient in its place, so
    that it is rounded once, with all that is added to it.
    """
    return Sums.empty(query, scales.shape[0], want)


def _scaled_rows(
    grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: tuple[int, ...]
) -> Tensor:
    total = torch.zeros_like(acc.select(-3, 0))
    for slot, exponent in enumerate(accumulate):
        weight = grad_lse.select(-2, exponent) * grad_scales[exponent]
        total.addcmul_(acc.select(-3, slot), weight.unsqueeze(-1))
    return total


@op(run=_scaled_rows)
def bank_lse_backward(
    grad_lse: Tensor, acc: Tensor, grad_scales: Tensor, accumulate: tuple[int, ...]
) -> Tensor:
    """Row scale of what the forward kept: dq_i = sum_a grad_lse[a, i] grad_scales[a] acc[a, i].

    Of two banks, all but ``grad_scales`` have a leading 2.
    """
    return torch.empty_like(acc.select(-3, 0))


def input_gradients(name: str, saved: Saved, grad: Sums) -> dict[str, Tensor | None]:
    """The gradients of a pass over one or two banks, those of the scales a bank each."""
    found: dict[str, Tensor | None] = {}
    for query in saved.needs & {"query", "wide_query"}:
        if not saved["want_accumulate"]:
            raise RuntimeError(
                f"sede::{name}: the forward kept no accumulator, so there is no query gradient; "
                "name the exponents in accumulate."
            )
        found[query] = bank_lse_backward(
            grad.lse.contiguous(), saved["acc"], saved["grad_scales"], saved["want_accumulate"]
        )
    if "scales" in saved.needs:
        if saved["moment"].shape[-2] == 0:
            raise RuntimeError(
                f"sede::{name}: the forward kept no moments, so there is no gradient of scales; "
                "pass moments=True."
            )
        found["scales"] = (grad.lse * saved["moment"]).sum(dim=-1)
    return found


@bank_lse.gradients(saves=("acc", "moment", "grad_scales"))
def _(saved: Saved, grad: Sums) -> dict[str, Tensor | None]:
    return input_gradients("bank_lse", saved, grad)
