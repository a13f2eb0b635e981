"""IMRAM: SGRAF's criterion on a score matrix, with the options first."""

from typing import Any

from sede_kernels.integrations import sgraf
from sede_kernels.integrations._fragments import Score
from sede_kernels.integrations.scan import i2t, t2i

__all__ = ["ContrastiveLoss", "i2t", "t2i"]


class ContrastiveLoss(sgraf.ContrastiveLoss):
    """Twin of IMRAM's ``ContrastiveLoss(opt, margin, max_violation)`` on a score matrix.

    Args:
        opt: the host's options; kept, not read.
        margin, max_violation, score, settings: see ``sgraf.ContrastiveLoss``.
    """

    def __init__(
        self,
        opt: object,
        margin: float = 0,
        max_violation: bool = False,
        *,
        score: Score | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(margin, max_violation, score=score, **settings)
        self.opt = opt
