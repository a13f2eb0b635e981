"""nn.Module twins of erasing and of the region-word similarity, with the same keywords."""

from torch import Tensor, nn

from sede_kernels import functional as F
from sede_kernels.checks import check_backend
from sede_kernels.erase_checks import check_erase
from sede_kernels.functional.cross_attention import check_similarity, erase_settings


class AttentionErase(nn.Module):
    """Module twin of ``functional.attention_erase``; also what ``erase=`` of a similarity takes.

    Args:
        rule, threshold, erase, keep_min, renormalize, backend: as in the function.

    Example:
        >>> import torch
        >>> AttentionErase(rule="topk", threshold=1)(torch.tensor([0.2, 0.8]))[1].tolist()
        [False, True]
    """

    def __init__(
        self,
        *,
        rule: str = "mean",
        threshold: float | None = None,
        erase: str = "low",
        keep_min: int = 1,
        renormalize: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_erase(
            "AttentionErase",
            rule=rule,
            length=1,
            threshold=threshold,
            erase=erase,
            keep_min=keep_min,
            renormalize=renormalize,
        )
        check_backend("AttentionErase", backend)
        self.rule = rule
        self.threshold = threshold
        self.erase = erase
        self.keep_min = keep_min
        self.renormalize = renormalize
        self.backend = backend

    def extra_repr(self) -> str:
        """The rule and its settings."""
        return (
            f"rule={self.rule}, threshold={self.threshold}, erase={self.erase}, "
            f"keep_min={self.keep_min}, renormalize={self.renormalize}"
        )

    def forward(self, attention: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(attention after erasing, mask of the kept)."""
        return F.attention_erase(
            attention,
            rule=self.rule,
            threshold=self.threshold,
            erase=self.erase,
            keep_min=self.keep_min,
            lengths=lengths,
            renormalize=self.renormalize,
            backend=self.backend,
        )


class CrossAttentionSimilarity(nn.Module):
    """Module twin of ``functional.cross_attention_similarity``.

    Args:
        direction, smoothing, aggregate, aggregate_scale: as in the function.
        erase, attention, backend: as in the function.

    Example:
        >>> import torch
        >>> CrossAttentionSimilarity()(torch.ones(2, 3, 4), torch.ones(5, 2, 4)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        *,
        direction: str = "t2i",
        smoothing: float = 9.0,
        aggregate: str = "lse",
        aggregate_scale: float = 6.0,
        erase: str | AttentionErase | None = None,
        attention: str = "softmax",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_similarity(
            "CrossAttentionSimilarity",
            direction,
            smoothing,
            aggregate,
            aggregate_scale,
            attention,
            erase,
        )
        check_backend("CrossAttentionSimilarity", backend)
        if erase is not None:
            erase_settings("CrossAttentionSimilarity", erase, 1)
        self.direction = direction
        self.smoothing = smoothing
        self.aggregate = aggregate
        self.aggregate_scale = aggregate_scale
        self.erase = erase
        self.attention = attention
        self.backend = backend

    def extra_repr(self) -> str:
        """The settings of the similarity."""
        return (
            f"direction={self.direction}, smoothing={self.smoothing}, aggregate={self.aggregate}, "
            f"aggregate_scale={self.aggregate_scale}"
        )

    def forward(
        self,
        regions: Tensor,
        words: Tensor,
        *,
        region_lengths: Tensor | None = None,
        word_lengths: Tensor | None = None,
    ) -> Tensor:
        """(B, C) similarities."""
        return F.cross_attention_similarity(
            regions,
            words,
            region_lengths=region_lengths,
            word_lengths=word_lengths,
            direction=self.direction,
            smoothing=self.smoothing,
            aggregate=self.aggregate,
            aggregate_scale=self.aggregate_scale,
            erase=self.erase,
            attention=self.attention,
            backend=self.backend,
        )
