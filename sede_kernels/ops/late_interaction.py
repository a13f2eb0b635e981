"""Late interaction of all pairs and of chosen ones: the nearest source of each query fragment.

The backward computes S again; the first of equal sources gets the gradient.
"""

from torch import Tensor

from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.cross_attention import SIDES, side_gradients, wanted_of
from sede_kernels.types import Fragments, LateInteraction, SideGradients, Wanted, result_dtype


@op(decides=SIDES[:2], differentiable=("out",))
def late_interaction(sides: Fragments, how: LateInteraction, backend: str) -> Tensor:
    """Similarities (B, C) of every image with every caption."""
    regions, words, *_ = sides
    return regions.new_empty((regions.shape[0], words.shape[0]), dtype=result_dtype(regions))


@op(decides=SIDES[:2])
def late_interaction_backward(
    grad: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted, backend: str
) -> SideGradients:
    """The gradients of regions (B, R, D) and words (C, L, D)."""
    return SideGradients.empty(sides, wanted)


@op(decides=SIDES[:2], differentiable=("out",))
def late_interaction_pairs(sides: Fragments, how: LateInteraction, backend: str) -> Tensor:
    """Similarities (B, N) of (B, N or 1) sets a side."""
    regions, words, *_ = sides
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    return regions.new_empty((regions.shape[0], pairs), dtype=result_dtype(regions))


@op(decides=SIDES[:2])
def late_interaction_pairs_backward(
    grad: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted, backend: str
) -> SideGradients:
    """The gradients of regions and words in their shapes."""
    return SideGradients.empty(sides, wanted)


@late_interaction.gradients(saves=SIDES)
def _(saved: Saved, grad: Tensor) -> dict[str, Tensor | None]:
    sides, how = saved.take("sides"), saved.take("how")
    found = late_interaction_backward(
        grad.contiguous(), sides, how, wanted_of(saved), saved["backend"]
    )
    return side_gradients(saved, found)


@late_interaction_pairs.gradients(saves=SIDES)
def _(saved: Saved, grad: Tensor) -> dict[str, Tensor | None]:
    sides, how = saved.take("sides"), saved.take("how")
    found = late_interaction_pairs_backward(
        grad.contiguous(), sides, how, wanted_of(saved), saved["backend"]
    )
    return side_gradients(saved, found)
