"""SCAN: words attend to regions, or regions to words, and are compared with what they found."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor

from sede_kernels.training.models.base import Encoded, Erasing, FragmentModel, Sizes
from sede_kernels.training.models.encoders import RegionEncoder, WordEncoder

DIRECTIONS = ("t2i", "i2t", "both")
SMOOTHING = {"t2i": 9.0, "i2t": 4.0}  # as published for Flickr30K


class Scan(FragmentModel):
    """Stacked cross attention in the Gram form of this library.

    Lee et al., ECCV 2018. ``t2i``: each word attends to the regions; ``i2t``: each region to the
    words; ``both``: the mean of the two scores. Aggregation by mean keeps the score a cosine, so
    that one temperature, hardness and margin serve all models.

    Args:
        sizes: widths and dropout.
        erasing: by the attention of each query over its sources, or None.
        direction: ``t2i``, ``i2t`` or ``both``.
        smoothing: inverse temperature of that attention; 0: as published (9 and 4).
    """

    options = ("direction", "smoothing")
    defaults: ClassVar[Mapping[str, float]] = {**FragmentModel.defaults, "lr": 4e-3}

    def __init__(
        self,
        sizes: Sizes,
        erasing: Erasing | None = None,
        *,
        direction: str = "t2i",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(sizes, erasing)
        directions = ("t2i", "i2t") if direction == "both" else (direction,)
        self.directions = {way: smoothing or SMOOTHING[way] for way in directions}
        self.image_encoder = RegionEncoder(sizes)
        self.text_encoder = WordEncoder(sizes)

    def erased(self, images: Encoded) -> Encoded:
        """The same images: the attention of each query is erased, inside the score."""
        return images

    def compare(
        self,
        similarity: Callable[..., Tensor],
        images: Encoded,
        captions: Encoded,
        erased: bool = False,
    ) -> Tensor:
        """Mean cosine between query fragments and what they attended to."""
        erasing = self.erasing
        acts = erasing is not None and (erased or erasing.acts(self.training))
        erase = erasing.inside() if erasing is not None and acts else None
        scores = [
            similarity(
                images.fragments,
                captions.fragments,
                region_lengths=images.lengths,
                word_lengths=captions.lengths,
                direction=way,
                smoothing=smoothing,
                aggregate="mean",
                erase=erase,
            )
            for way, smoothing in self.directions.items()
        ]
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2
