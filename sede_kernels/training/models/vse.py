"""VSE-style model: each side pooled to one vector, compared by cosine."""

from torch import Tensor

from sede_kernels.training.models.base import (
    PASSES,
    AttentionPool,
    Encoded,
    Erasing,
    RegionEncoder,
    RetrievalModel,
    WordEncoder,
    check_erasing,
)


class Vse(RetrievalModel):
    """Region MLP and GRU with attention pooling on both sides.

    Erasing acts on the pooling attention of the regions; terse captions leave nothing to erase.

    Args:
        features: width of the region features.
        words: size of the vocabulary.
        dim: width of the embedding.
        word_dim: width of the word embeddings.
        dropout: probability.
        erasing: by the pooling attention, or None.
    """

    compares_fragments = False

    def __init__(
        self,
        features: int,
        words: int,
        *,
        dim: int = 256,
        word_dim: int = 128,
        dropout: float = 0.2,
        erasing: Erasing | None = None,
    ) -> None:
        super().__init__()
        check_erasing(erasing, "vse", PASSES)
        self.erasing = erasing
        self.features = features
        self.image_encoder = RegionEncoder(features, dim, dropout, AttentionPool(dim, erasing))
        self.text_encoder = WordEncoder(words, word_dim, dim, dropout, AttentionPool(dim, None))

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Cosine of all pairs."""
        return images.unit_vector() @ captions.unit_vector().t()
