"""nn.Module twins of the functions, with the same keywords, and the two-bank SEDE loss."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels import functional as F
from sede_kernels.attention_modules import AttentionErase, CrossAttentionSimilarity
from sede_kernels.bank import BankView, MemoryBank, check_keys
from sede_kernels.checks import (
    check_backend,
    check_bool,
    check_info_nce,
    check_weights,
)
from sede_kernels.dense import alike
from sede_kernels.functional import InfoNCEStats
from sede_kernels.ids import as_ids
from sede_kernels.scaled_loss import ScaledLoss
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.warmup import WarmUp

__all__ = [
    "AttentionErase",
    "CrossAttentionSimilarity",
    "SEDELoss",
    "ScoreInfoNCE",
    "WeightedInfoNCE",
]


class WeightedInfoNCE(ScaledLoss):
    """Module twin of ``functional.weighted_info_nce``: options at construction, tensors at call.

    Args:
        temperature: tau > 0; kept as 1 / tau in log space when learnable, so it stays positive.
        hardness: beta >= 0 in cosine units.
        learn_temperature: make the temperature a parameter (``log_inverse_temperature``, (1,)).
        learn_hardness: make the hardness a parameter ((1,)). Below 0 it counts as 0, and each
            training call first puts it back there.
        max_inverse_temperature: cap of a learnable 1 / tau, as CLIP has one: each training call
            first puts a larger parameter back to it. None for no cap. A fixed temperature stays
            as it is.
        normalize_weights, detach_weights, positive_focus, tau_plus: as in the function.
        false_negatives, margin, in_batch_negatives, unit_length: as in the function.
        reduction, backend: as in the function.

    Example:
        >>> loss = WeightedInfoNCE(temperature=0.1, hardness=5.0)
        >>> loss(torch.eye(2), torch.eye(2), torch.eye(2).flip(0)).ndim
        0
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        hardness: float = 0.0,
        learn_temperature: bool = False,
        learn_hardness: bool = False,
        max_inverse_temperature: float | None = 100.0,
        normalize_weights: bool = True,
        detach_weights: bool = True,
        positive_focus: float = 0.0,
        tau_plus: float = 0.0,
        false_negatives: str = "mask",
        margin: float | None = None,
        in_batch_negatives: bool = False,
        unit_length: bool = False,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, hardness, learn_temperature, learn_hardness)
        self.set_cap(max_inverse_temperature)
        self.options: dict[str, Any] = {
            "normalize_weights": normalize_weights,
            "detach_weights": detach_weights,
            "positive_focus": positive_focus,
            "tau_plus": tau_plus,
            "false_negatives": false_negatives,
            "margin": margin,
            "in_batch_negatives": in_batch_negatives,
            "unit_length": unit_length,
            "reduction": reduction,
        }
        check_info_nce(type(self).__name__, **self.options)
        check_backend(type(self).__name__, backend)
        self.options["backend"] = backend

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        bank: Tensor | MemoryBank | BankView | None,
        *,
        query_ids: Tensor | Sequence[int] | None = None,
        bank_ids: Tensor | Sequence[int] | None = None,
        limit: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """The loss of ``functional.weighted_info_nce`` for these tensors; ids as lists pass too."""
        self.cap_temperature()
        self.floor_hardness()
        options = {
            "temperature": self.temperature,
            "hardness": self.hardness_at_least_zero,
            "max_inverse_temperature": self.bound,
            "query_ids": as_ids("WeightedInfoNCE", "query_ids", query_ids, query),
            "bank_ids": as_ids("WeightedInfoNCE", "bank_ids", bank_ids, query),
            "limit": limit,
            **self.options,
        }
        if return_stats:
            return F.weighted_info_nce(query, positive, bank, return_stats=True, **options)
        loss: Tensor = F.weighted_info_nce(query, positive, bank, **options)
        return loss


class ScoreInfoNCE(ScaledLoss):
    """Module twin of ``functional.score_info_nce``: options at construction, tensors at call.

    Args:
        temperature, hardness, learn_temperature, learn_hardness: as in ``WeightedInfoNCE``.
        normalize_weights, detach_weights, false_negatives, reduction, backend: as in the function.

    Example:
        >>> loss = ScoreInfoNCE(temperature=0.1, hardness=5.0)
        >>> loss(torch.eye(3), query_ids=torch.tensor([0, 1, 1])).ndim
        0
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        hardness: float = 0.0,
        learn_temperature: bool = False,
        learn_hardness: bool = False,
        normalize_weights: bool = True,
        detach_weights: bool = True,
        false_negatives: str = "mask",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, hardness, learn_temperature, learn_hardness)
        check_weights("ScoreInfoNCE", normalize_weights, detach_weights, false_negatives, reduction)
        check_backend("ScoreInfoNCE", backend)
        self.options: dict[str, Any] = {
            "normalize_weights": normalize_weights,
            "detach_weights": detach_weights,
            "false_negatives": false_negatives,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(
        self,
        scores: Tensor,
        positive: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """The loss of ``functional.score_info_nce`` for these tensors."""
        self.floor_hardness()
        options = {
            "temperature": self.temperature,
            "hardness": self.hardness_at_least_zero,
            "valid": valid,
            "query_ids": query_ids,
            "key_ids": key_ids,
            **self.options,
        }
        if return_stats:
            return F.score_info_nce(scores, positive, return_stats=True, **options)
        loss: Tensor = F.score_info_nce(scores, positive, **options)
        return loss


class SEDELoss(WarmUp):
    """Both directions of the weighted InfoNCE with one memory bank a modality.

    ``loss = (NCE(image, text_key; text bank) + NCE(text, image_key; image bank)) / 2``. Images are
    compared with past texts and texts with past images. ``enqueue`` is a call of its own, after
    the loss and in training only.

    Args:
        size: K >= 1, slots of each bank.
        dim: D >= 1.
        dtype: of the banks, see ``MemoryBank``.
        start_step: enqueues before the banks join the loss; until then only in-batch negatives
            count, whatever ``in_batch_negatives`` says. The device decides, so a step stays one
            compiled graph. 0 costs nothing; else the pass over the batch stays, 2BBD FLOPs a side.
        in_batch_negatives: the other rows' keys are negatives too. Without them the first losses,
            against empty banks, are 0 and have no gradient.
        sharded: the ranks of ``torch.distributed`` hold the banks together, K / W slots each; see
            ``ShardedMemoryBank``, also for group and max_batch.
        loss_options: further keywords of ``WeightedInfoNCE``.

    Example:
        >>> criterion = SEDELoss(8, 4, temperature=0.1)
        >>> image, text, ids = torch.eye(4), torch.eye(4), torch.arange(4)
        >>> loss = criterion(image, text, image, text, ids=ids)
        >>> criterion.enqueue(image, text, ids=ids)
        >>> len(criterion.image_bank)
        4
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        start_step: int = 0,
        in_batch_negatives: bool = True,
        sharded: bool = False,
        group: "dist.ProcessGroup | None" = None,
        max_batch: int | None = None,
        **loss_options: Any,
    ) -> None:
        super().__init__(start_step)
        check_bool("SEDELoss", "sharded", sharded)
        if not sharded and not (group is None and max_batch is None):
            raise ValueError("SEDELoss: group and max_batch are those of sharded=True.")
        shared: dict[str, Any] = {"group": group, "max_batch": max_batch} if sharded else {}
        kind = ShardedMemoryBank if sharded else MemoryBank
        self.image_bank: MemoryBank = kind(size, dim, dtype=dtype, **shared)
        self.text_bank: MemoryBank = kind(size, dim, dtype=dtype, **shared)
        self.nce = WeightedInfoNCE(in_batch_negatives=in_batch_negatives, **loss_options)

    def reset_parameters(self) -> None:
        """Empty banks, the warm-up before it, and learnable scalars as at construction."""
        super().reset_parameters()
        for part in (self.image_bank, self.text_bank, self.nce):
            part.reset_parameters()

    def extra_repr(self) -> str:
        """The warm-up."""
        return f"start_step={self.start_step}"

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_key: Tensor | None = None,
        text_key: Tensor | None = None,
        *,
        ids: Tensor | Sequence[int] | None = None,
        limit: Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[InfoNCEStats, InfoNCEStats]]:
        """The mean of both directions.

        Args:
            image: (B, D) image embeddings of the trained encoder.
            text: (B, D) text embeddings of the trained encoder.
            image_key: (B, D) keys of the momentum encoder, or ``image.detach()`` with a loss of the
                batch alone beside this one. None: ``image`` itself, with a gradient; positives that
                learn move away from old negatives (docs/training.md).
            text_key: (B, D), as ``image_key``.
            ids: (B,) integers >= 0, what each pair is of; a tensor or a list.
            limit: (B,) largest similarity of each row's negatives, or (2, B) of each direction; as
                in ``symmetric_info_nce``.
            return_stats: also return what each direction knows of its rows.

        Returns:
            The loss, scalar (or (B,) with ``reduction="none"``). With ``return_stats`` also
            ``InfoNCEStats`` from images to texts and from texts to images.
        """
        image_key = image if image_key is None else image_key
        text_key = text if text_key is None else text_key
        warm = self.warm
        options = dict(self.nce.options)
        if warm is not None and not options["in_batch_negatives"]:
            options["in_batch_negatives"] = ~warm
        self.nce.cap_temperature()
        self.nce.floor_hardness()
        options |= {
            "temperature": self.nce.temperature,
            "hardness": self.nce.hardness_at_least_zero,
            "max_inverse_temperature": self.nce.bound,
            "ids": as_ids("SEDELoss", "ids", ids, image),
            "limit": limit,
        }
        banks = self.image_bank.where(warm), self.text_bank.where(warm)
        if return_stats:
            return F.symmetric_info_nce(
                image, text, image_key, text_key, *banks, return_stats=True, **options
            )
        loss: Tensor = F.symmetric_info_nce(image, text, image_key, text_key, *banks, **options)
        return loss

    def parameter_group(self) -> dict[str, Any]:
        """The learnable scalars as a group of an optimizer without weight decay."""
        return self.nce.parameter_group()

    @torch.no_grad()
    def enqueue(
        self, image_key: Tensor, text_key: Tensor, *, ids: Tensor | Sequence[int] | None = None
    ) -> None:
        """Store the keys (B, D) of both modalities; count one step of the warm-up.

        Raises:
            ValueError, TypeError: keys or ids that a bank cannot take; both stay as they were.
        """
        known = as_ids("SEDELoss.enqueue", "ids", ids, image_key)
        pairs = (self.image_bank, image_key), (self.text_bank, text_key)
        if not alike(image_key, text_key):  # else the first bank checks for both
            for bank, keys in pairs:
                check_keys(bank, keys, known)
            if image_key.shape != text_key.shape:
                raise ValueError(
                    "SEDELoss.enqueue: image_key and text_key must have one shape, "
                    f"got {tuple(image_key.shape)} and {tuple(text_key.shape)}."
                )
        for bank, keys in pairs:
            bank.enqueue(keys, known)
        self.advance()
