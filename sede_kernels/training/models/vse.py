"""VSE-style model: each side pooled to one vector, compared by cosine."""

from sede_kernels.training.models.base import Erasing, Sizes, VectorModel
from sede_kernels.training.models.encoders import AttentionPool, RegionEncoder, WordEncoder


class Vse(VectorModel):
    """Region MLP and GRU with attention pooling on both sides.

    Erasing acts on the pooling attention of the regions; terse captions leave nothing to erase.

    Args:
        sizes: widths and dropout.
        erasing: by the pooling attention, or None.
    """

    def __init__(self, sizes: Sizes, erasing: Erasing | None = None) -> None:
        super().__init__(sizes, erasing)
        self.image_encoder = RegionEncoder(sizes, AttentionPool(sizes.dim, erasing))
        self.text_encoder = WordEncoder(sizes, AttentionPool(sizes.dim, None))
