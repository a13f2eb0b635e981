"""What every retrieval model shares: region and word encoders, and attention pooling."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sede_kernels.functional import attention_erase
from sede_kernels.training.files import UserError

PASSES = ("replace", "second")


class Erasing(NamedTuple):
    """How a model erases fragments by their attention.

    Attributes:
        side: ``low`` hides what is attended least, ``high`` what is attended most.
        rule: a rule of :func:`sede_kernels.attention_erase`.
        threshold: of the rules that take one.
        how: ``replace`` erases in every pass, in evaluation too; ``second`` adds a training pass
            over what erasing left, and leaves the embedding alone.
    """

    side: str
    rule: str = "mean"
    threshold: float | None = None
    how: str = "replace"

    def __call__(self, attention: Tensor, lengths: Tensor | None) -> Tensor:
        """The attention (B, L) without the erased fragments, summing to 1 again."""
        kept, _ = attention_erase(
            attention, rule=self.rule, threshold=self.threshold, erase=self.side, lengths=lengths
        )
        return kept


class Encoded(NamedTuple):
    """One side of a batch.

    Attributes:
        fragments: (B, L, D) regions or words.
        lengths: (B,) how many of them are real, or None for all.
        vector: (B, D) unit length, or None for models that compare fragments.
        attention: (B, L) of the pooling, before erasing, or None.
    """

    fragments: Tensor
    lengths: Tensor | None
    vector: Tensor | None = None
    attention: Tensor | None = None

    def unit_vector(self) -> Tensor:
        """The vector, for code that only serves pooled models."""
        if self.vector is None:
            raise TypeError("this encoder gives fragments, not one vector")
        return self.vector


class AttentionPool(nn.Module):
    """Weighted mean of fragments, to unit length.

    ``a = softmax(w . tanh(W x))`` over the real fragments; ``vector = normalize(sum a x)``.

    Args:
        dim: width of the fragments.
        erasing: erase by ``a`` before the mean, or None.
    """

    def __init__(self, dim: int, erasing: Erasing | None) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, dim // 2), nn.Tanh(), nn.Linear(dim // 2, 1))
        self.erasing = erasing if erasing is not None and erasing.how == "replace" else None

    def forward(self, fragments: Tensor, lengths: Tensor | None) -> Encoded:
        """Pool (B, L, D) fragments of which the first ``lengths`` are real."""
        scores = self.score(fragments).squeeze(-1)  # [B, L]
        if lengths is not None:
            places = torch.arange(scores.shape[1], device=scores.device)
            scores = scores.masked_fill(places >= lengths[:, None], float("-inf"))
        attention = scores.softmax(1)
        kept = attention if self.erasing is None else self.erasing(attention, lengths)
        return Encoded(fragments, lengths, pooled(fragments, kept), attention)


def pooled(fragments: Tensor, attention: Tensor) -> Tensor:
    """``normalize(sum_l a_l x_l)``: (B, L, D), (B, L) -> (B, D)."""
    return F.normalize(torch.einsum("bl,bld->bd", attention, fragments), dim=1)


class RegionEncoder(nn.Module):
    """Region features to fragments: layer norm, then a linear map plus a two-layer MLP.

    Args:
        features: width of the region features.
        dim: width of the fragments.
        dropout: on the features and in the MLP.
        pool: turns fragments into a vector, or None for unit fragments.
    """

    def __init__(self, features: int, dim: int, dropout: float, pool: AttentionPool | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, dim)
        self.mlp = nn.Sequential(
            nn.Linear(features, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim)
        )
        self.pool = pool

    def forward(self, regions: Tensor) -> Encoded:
        """Encode (B, R, F) region features."""
        features = self.dropout(self.norm(regions))
        fragments = self.linear(features) + self.mlp(features)
        if self.pool is not None:
            encoded: Encoded = self.pool(fragments, None)
            return encoded
        return Encoded(F.normalize(fragments, dim=-1), None)


class WordEncoder(nn.Module):
    """Words to fragments: learned embeddings and a two-way GRU whose directions are averaged.

    Args:
        words: size of the vocabulary.
        word_dim: width of the embeddings.
        dim: width of the fragments.
        dropout: on the embeddings.
        pool: turns fragments into a vector, or None for unit fragments.
    """

    def __init__(
        self, words: int, word_dim: int, dim: int, dropout: float, pool: AttentionPool | None
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, word_dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(word_dim, dim, batch_first=True, bidirectional=True)
        self.pool = pool

    def forward(self, words: Tensor, lengths: Tensor) -> Encoded:
        """Encode (B, L) word numbers of which the first ``lengths`` (B,) are real."""
        embedded = self.dropout(self.embed(words))
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=words.shape[1]
        )
        forward, backward = states.chunk(2, dim=2)
        fragments = (forward + backward) / 2
        if self.pool is not None:
            encoded: Encoded = self.pool(fragments, lengths)
            return encoded
        return Encoded(F.normalize(fragments, dim=-1), lengths)


class RetrievalModel(nn.Module, ABC):
    """Two encoders and a score for every image-caption pair.

    Attributes:
        image_encoder: (B, R, F) regions -> :class:`Encoded`.
        text_encoder: (C, L) words, (C,) lengths -> :class:`Encoded`.
        erasing: what the model erases, or None.
        features: width of the region features it was built for.
        compares_fragments: whether ``score`` needs fragments, so that banks must hold them.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    erasing: Erasing | None
    features: int
    compares_fragments: bool

    @abstractmethod
    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """Similarity of all pairs, (B images, C captions)."""


def check_erasing(erasing: Erasing | None, model: str, passes: tuple[str, ...]) -> None:
    """Refuse a kind of erasing pass that a model has no place for."""
    if erasing is not None and erasing.how not in passes:
        raise UserError(
            f"model {model} erases with --erase-pass {' or '.join(passes)}, got {erasing.how!r}."
        )
