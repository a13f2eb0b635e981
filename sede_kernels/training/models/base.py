"""What every retrieval model shares: encoded batches, erasing, and the score of all pairs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sede_kernels.functional import (
    attention_erase,
    cross_attention_pairs,
    cross_attention_similarity,
)
from sede_kernels.modules import AttentionErase

PASSES = ("replace", "train", "second")


class Erasing(NamedTuple):
    """How a model erases fragments by their attention.

    Attributes:
        side: ``low`` hides what is attended least, ``high`` what is attended most.
        rule: a rule of :func:`sede_kernels.attention_erase`.
        threshold: of the rules that take one.
        how: ``replace`` erases in every pass, in evaluation too; ``train`` in training only;
            ``second`` adds a training pass over what erasing left, whose loss is added to that of
            the whole images; evaluation erases nothing.
    """

    side: str
    rule: str = "mean"
    threshold: float | None = None
    how: str = "replace"

    def acts(self, training: bool) -> bool:
        """Whether embeddings are erased in this mode."""
        return self.how == "replace" or (self.how == "train" and training)

    def __call__(self, attention: Tensor, lengths: Tensor | None) -> Tensor:
        """The attention (B, L) without the erased fragments, summing to 1 again."""
        return self._apply(attention, lengths)[0]

    def kept(self, attention: Tensor) -> Tensor:
        """Which of (B, L) fragments stay, bool."""
        return self._apply(attention, None)[1]

    def _apply(self, attention: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return attention_erase(
            attention, rule=self.rule, threshold=self.threshold, erase=self.side, lengths=lengths
        )

    def inside(self) -> AttentionErase:
        """For the ``erase`` of :func:`sede_kernels.cross_attention_similarity`."""
        return AttentionErase(rule=self.rule, threshold=self.threshold, erase=self.side)


class Encoded(NamedTuple):
    """One side of a batch.

    Attributes:
        fragments: (B, L, D) regions or words.
        lengths: (B,) how many of them are real, or None for all.
        vector: (B, D) unit length, or None for models that compare fragments.
        attention: (B, L) over the fragments, before erasing, or None where there is none.
    """

    fragments: Tensor
    lengths: Tensor | None
    vector: Tensor | None = None
    attention: Tensor | None = None

    def first(self, count: int) -> "Encoded":
        """The first rows of the batch."""
        if count == len(self.fragments):
            return self
        return Encoded(*(None if t is None else t[:count] for t in self))  # type: ignore[arg-type]

    def detach(self) -> "Encoded":
        """The same without a gradient."""
        return Encoded(*(None if t is None else t.detach() for t in self))  # type: ignore[arg-type]

    def unit_vector(self) -> Tensor:
        """The vector, for code that only serves pooled models."""
        if self.vector is None:
            raise TypeError("this encoder gives fragments, not one vector")
        return self.vector


@dataclass(frozen=True)
class Sizes:
    """What all encoders are built from.

    Attributes:
        features: width of the region features.
        words: size of the vocabulary.
        sentence: width of frozen sentence embeddings, 0 for none.
        dim: width of the fragments and vectors.
        word_dim: width of the word embeddings.
        dropout: probability.
    """

    features: int
    words: int
    sentence: int = 0
    dim: int = 256
    word_dim: int = 128
    dropout: float = 0.2


class RetrievalModel(nn.Module, ABC):
    """Two encoders and a score for every image-caption pair.

    Attributes:
        image_encoder: (B, R, F) regions -> :class:`Encoded`.
        text_encoder: (C, L) words, (C,) lengths, (C, S) sentence embeddings or None
            -> :class:`Encoded`.
        sizes: what the encoders were built for.
        erasing: what the model erases, or None.
        compares_fragments: whether ``score`` needs fragments, so that banks must hold them.
        options: settings of its own that the model takes, by their names in the configuration.
        defaults: settings of the configuration that suit the model, in place of 0.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    compares_fragments: ClassVar[bool]
    options: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, float]] = {
        "dim": 256,
        "lr": 2e-3,
        "temperature": 0.05,
        "bank_share": 1.0,
    }

    def __init__(self, sizes: Sizes, erasing: Erasing | None) -> None:
        super().__init__()
        self.sizes = sizes
        self.erasing = erasing

    @property
    def features(self) -> int:
        """Width of the region features it was built for."""
        return self.sizes.features

    @abstractmethod
    def score(self, images: Encoded, captions: Encoded, *, erased: bool = False) -> Tensor:
        """Similarity of all pairs, (B images, C captions).

        Args:
            images: B of them.
            captions: C of them.
            erased: the images came from :meth:`erased`; where attention is erased inside the
                score, erase it in this pass.
        """

    @abstractmethod
    def erased(self, images: Encoded) -> Encoded:
        """Encoded images as a second pass sees them, without what erasing hides."""


class FragmentModel(RetrievalModel):
    """A model that compares sets of regions with sets of words."""

    compares_fragments = True

    def score(self, images: Encoded, captions: Encoded, *, erased: bool = False) -> Tensor:
        """Similarity of all pairs, (B images, C captions)."""
        return self.compare(cross_attention_similarity, images, captions, erased)

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Similarity of B queries with N candidates each, (B, N).

        The fragments of one side are (B, N, L, D), of the queries' side (B, 1, L, D), and lengths
        (B, N or 1).
        """
        return self.compare(cross_attention_pairs, images, captions)

    @abstractmethod
    def compare(
        self,
        similarity: Callable[..., Tensor],
        images: Encoded,
        captions: Encoded,
        erased: bool = False,
    ) -> Tensor:
        """The score, by a function of the library that compares fragments."""


class VectorModel(RetrievalModel):
    """A model with one unit vector a side."""

    compares_fragments = False

    def score(self, images: Encoded, captions: Encoded, *, erased: bool = False) -> Tensor:
        """Cosine of all pairs."""
        return images.unit_vector() @ captions.unit_vector().t()

    def erased(self, images: Encoded) -> Encoded:
        """The fragments pooled again, by the attention that is left."""
        if self.erasing is None or images.attention is None:
            raise TypeError("nothing to erase by: the model has no erasing")
        kept = self.erasing(images.attention, images.lengths)
        return images._replace(vector=pooled(images.fragments, kept))


def pooled(fragments: Tensor, attention: Tensor) -> Tensor:
    """``normalize(sum_l a_l x_l)``: (B, L, D), (B, L) -> (B, D)."""
    return F.normalize((attention.unsqueeze(1) @ fragments).squeeze(1), dim=1)
