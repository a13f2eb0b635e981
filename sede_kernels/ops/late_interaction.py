"""Late interaction of all pairs and of chosen ones: the nearest source of each query fragment.

The first of equal sources gets the gradient. A backend may keep numbers for the backward, where the
caller will want one (``keep``), as ``ops/cross_attention.py`` does; ``late_interaction_kept`` says
how many.
"""

from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.registry import native_function, native_look, resolve
from sede_kernels.fragment_types import Attended, Fragments, LateInteraction, Wanted
from sede_kernels.ops._op import op
from sede_kernels.ops.cross_attention import SIDES, gradients_by
from sede_kernels.types import SideGradients, result_dtype


def _attended(
    shape: tuple[int, int], sides: Fragments, how: LateInteraction, keep: bool, backend: str
) -> Attended:
    """Similarities of that shape, and what the backend keeps."""
    regions, words, *_ = sides
    size = 0
    if keep:
        kept = resolve("late_interaction_kept", backend, regions, words)
        size = kept(regions, words, how.direction)
    dtype = result_dtype(regions)
    return Attended(regions.new_empty(shape, dtype=dtype), regions.new_empty((size,), dtype=dtype))


@op(decides=SIDES[:2], differentiable=("similarity",))
def late_interaction(sides: Fragments, how: LateInteraction, keep: bool, backend: str) -> Attended:
    """Similarities (B, C) of every image with every caption."""
    shape = sides.regions.shape[0], sides.words.shape[0]
    return _attended(shape, sides, how, keep, backend)


@op(decides=SIDES[:2])
def late_interaction_backward(
    grad: Tensor,
    kept: Tensor,
    sides: Fragments,
    how: LateInteraction,
    wanted: Wanted,
    backend: str,
) -> SideGradients:
    """The gradients of regions (B, R, D) and words (C, L, D)."""
    return SideGradients.empty(sides.regions, sides.words, wanted)


@op(decides=SIDES[:2], differentiable=("similarity",))
def late_interaction_pairs(
    sides: Fragments, how: LateInteraction, keep: bool, backend: str
) -> Attended:
    """Similarities (B, N) of (B, N or 1) sets a side."""
    regions, words, *_ = sides
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    return _attended((regions.shape[0], pairs), sides, how, keep, backend)


@op(decides=SIDES[:2])
def late_interaction_pairs_backward(
    grad: Tensor,
    kept: Tensor,
    sides: Fragments,
    how: LateInteraction,
    wanted: Wanted,
    backend: str,
) -> SideGradients:
    """The gradients of regions and words in their shapes."""
    return SideGradients.empty(sides.regions, sides.words, wanted)


late_interaction.gradients(saves=("kept", *SIDES))(gradients_by(late_interaction_backward))
late_interaction_pairs.gradients(saves=("kept", *SIDES))(
    gradients_by(late_interaction_pairs_backward)
)


def at_once(sides: Fragments, how: LateInteraction, backend: str) -> Tensor | None:
    """The native result of plain arguments as they came, or None: then the checks have to look.

    Native code looks at classes, dtypes, shapes, addresses and lengths. The caller has seen that
    nothing but autograd looks on, and that ``cpu`` serves ``backend``.
    """
    fits = native_look("late_interaction", "late_interaction_fits")
    if fits is None or not fits(sides, how):
        return None
    if torch.is_grad_enabled() and (sides.regions.requires_grad or sides.words.requires_grad):
        pairs = late_interaction if sides.regions.dim() == 3 else late_interaction_pairs
        return pairs(sides, how, True, backend).similarity
    run: Any = native_function("late_interaction", "late_interaction_at_once")
    found: Tensor = run(sides, how, False).similarity
    return found
