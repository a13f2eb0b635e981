"""Region-word similarity of chosen pairs: a query with its own candidates, not with all sets."""

from torch import Tensor

from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.cross_attention import SIDES, side_gradients, wanted_of
from sede_kernels.types import SideGradients, result_dtype


@op(decides=SIDES[:2], differentiable=("out",))
def cross_attention_pairs(sides: Fragments, how: Attend, backend: str) -> Tensor:
    """Similarities (B, N) of (B, N or 1) sets a side."""
    regions, words, *_ = sides
    # One of the two is N, the other N or 1.
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    return regions.new_empty((regions.shape[0], pairs), dtype=result_dtype(regions))


@op(decides=SIDES[:2])
def cross_attention_pairs_backward(
    grad: Tensor, sides: Fragments, how: Attend, wanted: Wanted, backend: str
) -> SideGradients:
    """The gradients of regions and words in their shapes."""
    return SideGradients.empty(sides.regions, sides.words, wanted)


@cross_attention_pairs.gradients(saves=SIDES)
def _(saved: Saved, grad: Tensor) -> dict[str, Tensor | None]:
    found = cross_attention_pairs_backward(
        grad.contiguous(),
        saved.take("sides"),
        saved.take("how"),
        wanted_of(saved),
        saved["backend"],
    )
    return side_gradients(saved, found)
