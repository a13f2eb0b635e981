"""Region-word similarity of all image-caption pairs (SCAN, BFAN) without the context vectors.

A backend may keep numbers for the backward, where the caller will want one (``keep``): S where it
is small, or which pairs lose digits. Its ``cross_attention_kept`` says how many, from the shapes
alone.
"""

from collections.abc import Callable

from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.fragment_types import Attend, Attended, Fragments, Wanted
from sede_kernels.ops._op import Gradients, Saved, op
from sede_kernels.types import SideGradients, result_dtype

#: What a backward needs of the sides.
SIDES = ("sides_regions", "sides_words", "sides_region_lengths", "sides_word_lengths")


@op(decides=SIDES[:2], differentiable=("similarity",))
def cross_attention(sides: Fragments, how: Attend, keep: bool, backend: str) -> Attended:
    """The similarities of every image with every caption."""
    regions, words, *_ = sides
    dtype = result_dtype(regions)
    size = 0
    if keep:
        size = resolve("cross_attention_kept", backend, regions, words)(regions, words)
    similarity = regions.new_empty((regions.shape[0], words.shape[0]), dtype=dtype)
    return Attended(similarity, regions.new_empty((size,), dtype=dtype))


@op(decides=SIDES[:2])
def cross_attention_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: Attend, wanted: Wanted, backend: str
) -> SideGradients:
    """The gradients of regions (B, R, D) and words (C, L, D)."""
    return SideGradients.empty(sides.regions, sides.words, wanted)


def side_gradients(saved: Saved, found: SideGradients) -> dict[str, Tensor | None]:
    """The gradients of the sides that need one, by name."""
    both = dict(zip(SIDES, found, strict=False))
    return {name: both[name] for name in saved.needs}


def wanted_of(saved: Saved) -> Wanted:
    """Which sides need a gradient."""
    return Wanted(SIDES[0] in saved.needs, SIDES[1] in saved.needs)


def gradients_by(run: Callable[..., SideGradients]) -> Gradients:
    """The gradients of an op whose backward takes what it kept."""

    def gradients(saved: Saved, grad: Attended) -> dict[str, Tensor | None]:
        found = run(
            grad.similarity.contiguous(),
            saved["kept"],
            saved.take("sides"),
            saved.take("how"),
            wanted_of(saved),
            saved["backend"],
        )
        return side_gradients(saved, found)

    return gradients


cross_attention.gradients(saves=("kept", *SIDES))(gradients_by(cross_attention_backward))
