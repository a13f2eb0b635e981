"""SCAN: words attend to regions, and each word is compared with the regions it found."""

from torch import Tensor

from sede_kernels.functional import cross_attention_similarity
from sede_kernels.modules import AttentionErase
from sede_kernels.training.models.base import (
    Encoded,
    Erasing,
    RegionEncoder,
    RetrievalModel,
    WordEncoder,
    check_erasing,
)


class Scan(RetrievalModel):
    """Stacked cross attention, text to image, in the Gram form of this library.

    Lee et al., ECCV 2018. Aggregation by mean keeps the score a cosine, so that one temperature
    and one hardness serve both models.

    Args:
        features: width of the region features.
        words: size of the vocabulary.
        dim: width of the fragments.
        word_dim: width of the word embeddings.
        dropout: probability.
        erasing: by the attention of each word over the regions, or None.
        smoothing: inverse temperature of that attention.
    """

    compares_fragments = True

    def __init__(
        self,
        features: int,
        words: int,
        *,
        dim: int = 256,
        word_dim: int = 128,
        dropout: float = 0.2,
        erasing: Erasing | None = None,
        smoothing: float = 9.0,
    ) -> None:
        super().__init__()
        check_erasing(erasing, "scan", ("replace",))
        self.erasing = erasing
        self.features = features
        self.smoothing = smoothing
        self.erase = None
        if erasing is not None:
            self.erase = AttentionErase(
                rule=erasing.rule, threshold=erasing.threshold, erase=erasing.side
            )
        self.image_encoder = RegionEncoder(features, dim, dropout, None)
        self.text_encoder = WordEncoder(words, word_dim, dim, dropout, None)

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Mean over a caption's words of the cosine between the word and its attended regions."""
        return cross_attention_similarity(
            images.fragments,
            captions.fragments,
            region_lengths=images.lengths,
            word_lengths=captions.lengths,
            direction="t2i",
            smoothing=self.smoothing,
            aggregate="mean",
            erase=self.erase,
        )
