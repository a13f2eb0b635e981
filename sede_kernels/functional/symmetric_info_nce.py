"""Weighted InfoNCE in both directions, two banks in one pass."""

from typing import Literal, overload

from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import check_same_device, requested
from sede_kernels.dense import is_dense
from sede_kernels.functional._at_once import at_once
from sede_kernels.functional._bounded import bounded
from sede_kernels.functional._fused import Given, Keywords, fused, stats_of
from sede_kernels.functional._info_nce import (
    InfoNCEStats,
    check_direction,
    check_options,
    check_pair,
    reference_loss,
)
from sede_kernels.functional._reference_stats import reference_stats
from sede_kernels.types import InfoNCE

NAME = "symmetric_info_nce"


@overload
def symmetric_info_nce(
    image: Tensor,
    text: Tensor,
    image_key: Tensor,
    text_key: Tensor,
    image_bank: Tensor | MemoryBank | BankView | None,
    text_bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
    max_inverse_temperature: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[False] = False,
) -> Tensor: ...


@overload
def symmetric_info_nce(
    image: Tensor,
    text: Tensor,
    image_key: Tensor,
    text_key: Tensor,
    image_bank: Tensor | MemoryBank | BankView | None,
    text_bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
    max_inverse_temperature: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[True],
) -> tuple[Tensor, tuple[InfoNCEStats, InfoNCEStats]]: ...


def symmetric_info_nce(
    image: Tensor,
    text: Tensor,
    image_key: Tensor,
    text_key: Tensor,
    image_bank: Tensor | MemoryBank | BankView | None,
    text_bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
    max_inverse_temperature: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, tuple[InfoNCEStats, InfoNCEStats]]:
    r"""The mean of ``weighted_info_nce`` from images to texts and from texts to images.

    ``(NCE(image, text_key; text_bank) + NCE(text, image_key; image_bank)) / 2``. Where both banks
    have one shape, dtype and layout, one op serves both: on a GPU one launch instead of two.

    Args:
        image: (B, D) image embeddings, float32, bfloat16, float16 or float64.
        text: (B, D) text embeddings.
        image_key: (B, D) image keys, the positives of the texts.
        text_key: (B, D) text keys, the positives of the images.
        image_bank: (K, D) tensor, a ``MemoryBank``, or None with ``in_batch_negatives``.
        text_bank: as ``image_bank``.
        temperature: tau > 0, a number or a one-element tensor; this and what follows as in
            ``weighted_info_nce``.
        hardness: beta >= 0 in cosine units, a number or tensor.
        normalize_weights: weights average 1 over the negatives.
        detach_weights: no query gradient through the weights.
        positive_focus: gamma >= 0.
        tau_plus: in [0, 1), the share of false negatives removed.
        ids: (B,) integers >= 0, what each pair is of; -1 for unknown.
        false_negatives: same id in the bank or batch: ``mask``, ``positive`` or ``keep``.
        margin: negatives with s_j > s+ + margin are left out; None for no bound.
        limit: (B,) floating, in place of a margin: negatives with s_j > limit_i are left out;
            (2, B) for a limit of each direction, that from images to texts first.
        in_batch_negatives: the other rows' keys are negatives too and get a gradient; a bool, or
            a 0-d bool tensor on the device.
        unit_length: a promise that embeddings and bank rows have unit length, up to rounding.
        max_inverse_temperature: 1 / tau is at most this; None for no bound.
        reduction: ``none``, ``mean`` or ``sum``, of each direction.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.
        return_stats: also return ``InfoNCEStats`` of both directions.

    Returns:
        The loss, scalar, or (B,) with ``reduction="none"``; float32 (float64 for float64 input).
        With ``return_stats`` also the statistics from images to texts and from texts to images.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        Twice that of ``weighted_info_nce``, and a copy of the queries. Images and texts of two
        dtypes take one call a direction.

    Source:
        As ``weighted_info_nce``; both directions with a bank each as in Pan & Huang 2022 (SEDE).

    Example:
        >>> import torch
        >>> image, text = torch.eye(4)[:2], torch.eye(4)[:2]
        >>> bank = torch.eye(4)[2:]
        >>> loss = symmetric_info_nce(image, text, image, text, bank, bank, temperature=1.0)
        >>> round(loss.item(), 4)
        0.5514
    """
    of_image = of_text = limit
    if isinstance(limit, Tensor) and is_dense(limit) and limit.shape[:-1] == (2,):
        of_image, of_text = limit.unbind()
    sides = (
        Given(image, text_key, text_bank, ids, None, ("image", "text_key", "ids"), of_image),
        Given(text, image_key, image_bank, ids, None, ("text", "image_key", "ids"), of_text),
    )
    values = (
        temperature,
        hardness,
        normalize_weights,
        detach_weights,
        positive_focus,
        tau_plus,
        false_negatives,
        margin,
        in_batch_negatives,
        unit_length,
        reduction,
        backend,
        max_inverse_temperature,
    )
    found = at_once(NAME, sides, values, return_stats)
    if found is not None:
        return _with_stats(found, return_stats)
    chosen = requested(NAME, backend)

    def check() -> None:
        check_pair(NAME, image, text, ("image", "text"))
        check_pair(NAME, image, text_key, ("image", "text_key"))
        check_pair(NAME, text, image_key, ("text", "image_key"))
        check_same_device(NAME, image, text=text)

    limited = bounded(NAME, temperature, max_inverse_temperature, image)
    keywords = Keywords(limited, *values[1:-2], chosen, max_inverse_temperature)
    mixed = getattr(image, "dtype", None) != getattr(text, "dtype", None)
    if mixed or chosen == "reference":
        check()
    if chosen == "reference":
        options = check_options(NAME, image, **keywords.plain())
        directions = [
            check_direction(NAME, *given[:5], options, ids_name="ids", limit=given.limit)
            for given in sides
        ]
        losses = [reference_loss(direction, options) for direction in directions]
        loss = (losses[0] + losses[1]) / 2
        if not return_stats:
            return loss
        first, second = (reference_stats(direction, options) for direction in directions)
        return loss, (first, second)
    if mixed:
        one, other = (
            at_once(NAME, (side,), values, return_stats)
            or fused(NAME, (side,), keywords, hardest=return_stats)
            for side in sides
        )
        loss = (one.loss + other.loss) / 2
        return (loss, (stats_of(one, 0), stats_of(other, 0))) if return_stats else loss
    found = fused(NAME, sides, keywords, hardest=return_stats, check=check)
    return _with_stats(found, return_stats)


def _with_stats(
    found: InfoNCE, wanted: bool
) -> Tensor | tuple[Tensor, tuple[InfoNCEStats, InfoNCEStats]]:
    return (found.loss, (stats_of(found, 0), stats_of(found, 1))) if wanted else found.loss
