"""Attention-guided erasing: which fragments stay, and their attention, renormalised or not."""

import torch
from torch import Tensor

from sede_kernels.fragment_types import Erase, Erased
from sede_kernels.ops._op import Saved, op


@op(decides=("weights",), differentiable=("attention",))
def erase(weights: Tensor, lengths: Tensor | None, how: Erase, backend: str) -> Erased:
    """Erase attention weights (..., L), each row of its own length (...)."""
    return Erased(
        weights.new_empty(weights.shape), weights.new_empty(weights.shape, dtype=torch.bool)
    )


@op(decides=("grad_out",))
def erase_backward(
    grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool, backend: str
) -> Tensor:
    """H (g - sum(g out)) / sum(a H), or H g without renormalisation; the mask is constant."""
    return weights.new_empty(weights.shape)


# Without renormalisation the result is linear in the weights.
@erase.gradients(
    saves=("weights", "mask"),
    depends=lambda arguments: ("weights",) if arguments["how_renormalize"] else (),
)
def _(saved: Saved, grad: Erased) -> dict[str, Tensor | None]:
    found = erase_backward(
        grad.attention.contiguous(),
        saved["weights"],
        saved["mask"],
        saved["how_renormalize"],
        saved["backend"],
    )
    return {"weights": found}
