"""BFAN: cross attention in both directions, each focused on the fragments that matter."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from sede_kernels.training.models.base import Encoded, Erasing, FragmentModel, Sizes
from sede_kernels.training.models.encoders import RegionEncoder, WordEncoder

FOCAL_RULES = {"equal": "mean", "prob": "prob"}
SMOOTHING = 20.0  # as published


class FocusedRegions(nn.Module):
    """Region encoder that hides whole regions from every word before the cross attention.

    Args:
        sizes: widths and dropout.
        erasing: by ``a``.
        smoothing: lambda.
    """

    def __init__(self, sizes: Sizes, erasing: Erasing, smoothing: float) -> None:
        super().__init__()
        self.encoder = RegionEncoder(sizes)
        self.erasing = erasing
        self.smoothing = smoothing

    def forward(self, regions: Tensor) -> Encoded:
        """Encode (B, R, F) region features; fewer fragments come back."""
        if not self.erasing.acts(self.training):
            return self.encoder(regions)  # type: ignore[no-any-return]
        return self.hide(self.encoder(regions).fragments)

    def hide(self, fragments: Tensor) -> Encoded:
        """The regions of (B, R, D) that erasing keeps, moved to the front.

        By ``a_r = softmax_r(lambda cos(v_r, mean v))``.
        """
        with torch.no_grad():
            middle = nn.functional.normalize(fragments.mean(1), dim=1)
            attention = (self.smoothing * (fragments @ middle.unsqueeze(2)).squeeze(2)).softmax(1)
            kept = self.erasing.kept(attention)
            lengths = kept.sum(1)
            order = kept.int().argsort(dim=1, descending=True, stable=True)
            order = order[:, : int(lengths.max())]
        packed = fragments.gather(1, order.unsqueeze(2).expand(-1, -1, fragments.shape[2]))
        return Encoded(packed, lengths, attention=attention)


class Bfan(FragmentModel):
    """Bidirectional focal attention in the Gram form of this library.

    Liu et al., ACM MM 2019. Focal attention is this library's erasing by the ``mean`` rule
    (``equal``) or the ``prob`` rule, in both directions; the two mean cosines are added and halved,
    so that the score is a cosine as in the other models (the published score is twice this).

    That focus is part of the model. ``erasing`` comes before it and hides whole regions from every
    word, by the attention of an image over its own regions.

    Args:
        sizes: widths and dropout.
        erasing: of whole regions, or None.
        focal: ``equal`` or ``prob``.
        smoothing: inverse temperature of the attention; 0: as published (20).
    """

    options = ("focal", "smoothing")
    defaults: ClassVar[Mapping[str, float]] = {**FragmentModel.defaults, "lr": 4e-3}

    def __init__(
        self,
        sizes: Sizes,
        erasing: Erasing | None = None,
        *,
        focal: str = "equal",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(sizes, erasing)
        self.rule = FOCAL_RULES[focal]
        self.smoothing = smoothing or SMOOTHING
        self.image_encoder = (
            RegionEncoder(sizes)
            if erasing is None
            else FocusedRegions(sizes, erasing, self.smoothing)
        )
        self.text_encoder = WordEncoder(sizes)

    def erased(self, images: Encoded) -> Encoded:
        """Without the regions that erasing hides."""
        if not isinstance(self.image_encoder, FocusedRegions):
            raise TypeError("nothing to erase by: the model has no erasing")
        return self.image_encoder.hide(images.fragments)

    def compare(
        self,
        similarity: Callable[..., Tensor],
        images: Encoded,
        captions: Encoded,
        erased: bool = False,
    ) -> Tensor:
        """Half the sum of both directions' mean cosines after focal attention."""
        to_regions, to_words = (
            similarity(
                images.fragments,
                captions.fragments,
                region_lengths=images.lengths,
                word_lengths=captions.lengths,
                direction=way,
                smoothing=self.smoothing,
                aggregate="mean",
                erase=self.rule,
            )
            for way in ("t2i", "i2t")
        )
        return (to_regions + to_words) / 2
