"""Sets of fragments, how a pair of them becomes a similarity, and what an erasing takes and gives.

From ``functional`` to the launcher of a kernel, in every backend.
"""

from typing import NamedTuple

from torch import Tensor


class Erase(NamedTuple):
    """How attention is erased."""

    rule: str
    threshold: float = 0.0
    side: str = "low"  # the side that goes: "low" or "high"
    keep_min: int = 1
    renormalize: bool = True


class Fragments(NamedTuple):
    """Sets of fragments of both sides; (B, R, D) and (C, L, D), or chosen pairs (B, N or 1, ...).

    Fragments beyond a length may hold anything.
    """

    regions: Tensor
    words: Tensor
    region_lengths: Tensor | None = None  # a number each set, int64
    word_lengths: Tensor | None = None


class Attend(NamedTuple):
    """How a pair of sets becomes a similarity."""

    direction: str  # "t2i": words attend to regions; "i2t": regions to words
    smoothing: float
    aggregate: str
    aggregate_scale: float
    erase: Erase | None


class LateInteraction(NamedTuple):
    """How a pair of sets becomes a similarity where each query takes its nearest source."""

    direction: str  # as in ``Attend``
    aggregate: str
    aggregate_scale: float


class Attended(NamedTuple):
    """The similarities of all pairs."""

    similarity: Tensor  # (B, C)
    kept: Tensor  # for the backward, flat, in the order of the backend: S, or marks of pairs


class Wanted(NamedTuple):
    """Which sides get a gradient."""

    regions: bool
    words: bool


class Erased(NamedTuple):
    """Attention (..., L) after erasing."""

    attention: Tensor
    mask: Tensor  # bool, True where a fragment is kept
