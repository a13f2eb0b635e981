"""Late interaction of few fragments: products, nearest sources and gradients in one native call.

Blocks of torch's products, as ``late_interaction.py`` takes them, cost some ten calls from Python,
which many fragments win back and few do not.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.cross_attention_pairs import AGGREGATE_CODES
from sede_kernels.fragment_types import Attended, Fragments, LateInteraction, Wanted
from sede_kernels.types import SideGradients

_KEPT_ELEMENTS = 1 << 24  # of scores and sources together: 64 MB
_CALL_WORK = 1 << 26  # multiply-adds up to which one call is the faster way


def pairs_of(regions: Tensor, words: Tensor) -> tuple[int, int]:
    """(B, C) of all pairs, or (B, N) of chosen ones."""
    if regions.dim() == 4:
        return shape_of(regions, words)
    return regions.shape[0], words.shape[0]


def late_interaction_kept(regions: Tensor, words: Tensor, direction: str) -> int:
    """Elements that the forward keeps where a gradient will be asked for, from the shapes alone."""
    queries = regions if direction == "i2t" else words
    most = 2 * math.prod(pairs_of(regions, words)) * queries.shape[-2]
    return most if most <= _KEPT_ELEMENTS else 0


def is_small(sides: Fragments, direction: str) -> bool:
    """Whether one call serves, from the shapes alone: a backward must find the same answer."""
    regions, words, *_ = sides
    work = math.prod(pairs_of(regions, words)) * words.shape[-2] * math.prod(regions.shape[-2:])
    return 0 < work <= _CALL_WORK and late_interaction_kept(regions, words, direction) > 0


def forward(sides: Fragments, how: LateInteraction, keep: bool) -> Attended:
    """Similarities, and scores and sources (groups, source sets, query sets, queries) if asked."""
    size = late_interaction_kept(sides.regions, sides.words, how.direction) if keep else 0
    found = Attended(_native.empty(*pairs_of(*sides[:2])), _native.empty(size))
    _run(_native.module().late_interaction, sides, how, *found)
    return found


def backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted
) -> SideGradients:
    """The gradients of the sides in fp32 and in their shapes."""
    found = SideGradients(
        *(
            _native.empty(*side.shape) if wants else _native.empty(0)
            for side, wants in zip(sides[:2], wanted, strict=True)
        )
    )
    grad = grad.to(torch.float32).contiguous()
    _run(_native.module().late_interaction_backward, sides, how, grad, kept, *found)
    return found


def fits(sides: Fragments, how: LateInteraction) -> bool:
    """Whether one call serves plain tensors as they came, with nothing to convert or to refuse."""
    plain: bool = _native.module().late_interaction_fits(sides, _settings(how))
    return plain and is_small(sides, how.direction)


def _settings(how: LateInteraction) -> tuple[int, float, bool]:
    return AGGREGATE_CODES[how.aggregate], how.aggregate_scale, how.direction == "i2t"


def _run(
    call: Callable[..., bool], sides: Fragments, how: LateInteraction, *tensors: Tensor
) -> None:
    settings = _settings(how)
    if call(sides, settings, *tensors):
        return
    values = [side.to(torch.float32).contiguous() for side in sides[:2]]
    lengths = (
        None
        if given is None
        else _native.counts("late_interaction", given, tuple(side.shape[:-2]), side.shape[-2])
        for side, given in zip(values, sides[2:], strict=True)
    )
    if not call((*values, *lengths), settings, *tensors):
        raise ValueError(
            "cpu backend: late_interaction takes dense sets of fragments of one width on the CPU; "
            f"got {tuple(sides.regions.shape)} and {tuple(sides.words.shape)}."
        )
