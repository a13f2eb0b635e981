"""Region and word encoders, and attention pooling, that the models are put together from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sede_kernels.training.models.base import Encoded, Erasing, Sizes, pooled


class AttentionPool(nn.Module):
    """Weighted mean of fragments, to unit length.

    ``a = softmax(w . tanh(W x))`` over the real fragments; ``vector = normalize(sum a h)`` with
    ``h = x`` unless other fragments are given.

    Args:
        dim: width of the fragments.
        erasing: erase by ``a`` before the mean, or None.
    """

    def __init__(self, dim: int, erasing: Erasing | None) -> None:
        super().__init__()
        half = max(dim // 2, 1)
        self.score = nn.Sequential(nn.Linear(dim, half), nn.Tanh(), nn.Linear(half, 1))
        self.erasing = erasing

    def forward(
        self, fragments: Tensor, lengths: Tensor | None, values: Tensor | None = None
    ) -> Encoded:
        """Pool (B, L, D) values, of which the first ``lengths`` are real, by their fragments."""
        values = fragments if values is None else values
        scores = self.score(fragments).squeeze(-1)  # [B, L]
        if lengths is not None:
            places = torch.arange(scores.shape[1], device=scores.device)
            scores = scores.masked_fill(places >= lengths[:, None], float("-inf"))
        attention = scores.softmax(1)
        kept = attention
        if self.erasing is not None and self.erasing.acts(self.training):
            kept = self.erasing(attention, lengths)
        return Encoded(values, lengths, pooled(values, kept), attention)


class Dropout(nn.Module):
    """Dropout with one random byte an element, a fifth of the time of torch's on a CPU.

    Args:
        p: probability in [0, 1), rounded to a multiple of 1/256, at most 255/256.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.cut = min(round(256 * p), 255)

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of the elements and scale the others up, in training only."""
        if not self.training or self.cut == 0:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        draws = words.random_(-(1 << 63), None).view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (draws >= self.cut).to(x.dtype).mul_(256 / (256 - self.cut))


class RegionMlp(nn.Module):
    """Region features to fragments: standardised, then a linear map plus a two-layer MLP.

    The standardisation has no weights of its own (the linear maps have), so that no gradient is
    computed for the features.

    Args:
        sizes: widths and dropout, on the features and in the MLP.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        features, dim, dropout = sizes.features, sizes.dim, sizes.dropout
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(features, dim)
        self.mlp = nn.Sequential(
            nn.Linear(features, dim), nn.ReLU(), Dropout(dropout), nn.Linear(dim, dim)
        )

    def forward(self, regions: Tensor) -> Tensor:
        """(B, R, F) features -> (B, R, D)."""
        features = self.dropout(self.norm(regions))
        fragments: Tensor = self.linear(features) + self.mlp(features)
        return fragments


class RegionEncoder(nn.Module):
    """Regions to unit fragments, or pooled to one vector.

    Args:
        sizes: widths and dropout.
        pool: turns fragments into a vector, or None for unit fragments.
    """

    def __init__(self, sizes: Sizes, pool: AttentionPool | None = None) -> None:
        super().__init__()
        self.fragments = RegionMlp(sizes)
        self.pool = pool

    def forward(self, regions: Tensor) -> Encoded:
        """Encode (B, R, F) region features."""
        fragments = self.fragments(regions)
        if self.pool is not None:
            encoded: Encoded = self.pool(fragments, None)
            return encoded
        return Encoded(F.normalize(fragments, dim=-1), None)


class WordEncoder(nn.Module):
    """Words to fragments: learned embeddings and a two-way GRU whose directions are averaged.

    With frozen sentence embeddings ``e``, each word also gets ``W normalize(e)`` of its caption.

    Args:
        sizes: vocabulary, widths, and dropout on the embeddings.
        pool: turns fragments into a vector, or None for unit fragments.
    """

    def __init__(self, sizes: Sizes, pool: AttentionPool | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(sizes.words, sizes.word_dim, padding_idx=0)
        self.dropout = Dropout(sizes.dropout)
        self.gru = nn.GRU(sizes.word_dim, sizes.dim, batch_first=True, bidirectional=True)
        self.sentence = nn.Linear(sizes.sentence, sizes.dim) if sizes.sentence else None
        self.pool = pool

    def forward(self, words: Tensor, lengths: Tensor, sentences: Tensor | None = None) -> Encoded:
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
        if self.sentence is not None and sentences is not None:
            whole = self.sentence(self.dropout(F.normalize(sentences, dim=1)))
            fragments = fragments + whole.unsqueeze(1)
        if self.pool is not None:
            encoded: Encoded = self.pool(fragments, lengths)
            return encoded
        return Encoded(F.normalize(fragments, dim=-1), lengths)
