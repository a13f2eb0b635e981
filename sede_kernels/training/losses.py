"""The hinge on score matrices."""

from torch import Tensor


def hardest_hinge(positive: Tensor, hardest: Tensor, margin: float) -> Tensor:
    """``max(0, margin + s- - s+)``, one loss per row; ``s- = -inf`` (no negative) gives 0.

    Args:
        positive: (B,) score of each right pair.
        hardest: (B,) highest score of a wrong pair.
        margin: above 0.
    """
    return (margin + hardest - positive).clamp_min(0.0)
