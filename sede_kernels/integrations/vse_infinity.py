"""VSE-infinity: VSE++'s criterion with the options first and a switch for the hard negatives."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sede_kernels.integrations import _ranking, vsepp
from sede_kernels.integrations._checks import check_options


class ContrastiveLoss(vsepp.ContrastiveLoss):
    """Twin of VSE-infinity's ``ContrastiveLoss(opt, margin, max_violation)``.

    Args:
        opt: the host's options; kept, and ``embed_size`` is the width of the banks.
        margin: of the hinge.
        max_violation: count only the hardest negative of each query.
        bank_size, bank_dtype, temperature, hardness, start_step: see ``vsepp.ContrastiveLoss``.
    """

    def __init__(
        self,
        opt: Any,
        margin: float = 0,
        max_violation: bool = False,
        *,
        bank_size: int = 0,
        **settings: Any,
    ) -> None:
        if bank_size and "dim" not in settings:
            check_options(vsepp.NAME, opt, "embed_size")
            settings["dim"] = opt.embed_size
        super().__init__(margin, False, max_violation, bank_size=bank_size, **settings)
        self.opt = opt

    def max_violation_on(self) -> None:
        """Count only the hardest negative of each query (VSE++)."""
        self.max_violation = True

    def max_violation_off(self) -> None:
        """Count every negative (VSE0), the host's warm-up epoch."""
        self.max_violation = False


@torch.inference_mode()
def compute_sim(images: ArrayLike, captions: ArrayLike) -> NDArray[np.float32]:
    """(N, C) inner products in float32."""
    im, s = _ranking.vectors("compute_sim", images, captions)
    product: NDArray[np.float32] = (im @ s.t()).numpy()
    return product


def i2t(
    npts: int, sims: ArrayLike, return_ranks: bool = False, mode: str = "coco"
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Image-to-text recall from (N, m N) scores, m inferred; see ``scan.i2t``.

    Args:
        npts: accepted as in the host; the shape of ``sims`` decides.
        sims: (N, m N) scores.
        return_ranks: also return the ranks and the top answers.
        mode: accepted as in the host; one caption an image is seen from the shape.
    """
    return _ranking.image_to_text("i2t", sims, return_ranks)


def t2i(
    npts: int, sims: ArrayLike, return_ranks: bool = False, mode: str = "coco"
) -> _ranking.Metrics | tuple[_ranking.Metrics, _ranking.Ranks]:
    """Text-to-image recall from (N, m N) scores; see ``i2t``."""
    return _ranking.text_to_image("t2i", sims, return_ranks)
