"""Weighted InfoNCE in both directions, two banks in one pass."""

from typing import Literal, overload

from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import check_same_device
from sede_kernels.functional._exponents import Exponents
from sede_kernels.functional._info_nce import (
    Direction,
    InfoNCEStats,
    Options,
    check_direction,
    check_options,
    check_pair,
    finish,
    reference_loss,
)
from sede_kernels.functional._negatives import alike, bank_pass, bank_pass_pair
from sede_kernels.functional._reference_stats import reference_stats
from sede_kernels.types import Sums

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
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
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
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
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
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
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
        margin: negatives with s_j > s+ + margin are left out; None for no limit.
        in_batch_negatives: the other rows' keys are negatives too and get a gradient; a bool, or
            a 0-d bool tensor on the device.
        unit_length: a promise that embeddings and bank rows have unit length, up to rounding.
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
        Twice that of ``weighted_info_nce``, and a copy of the queries.

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
    check_pair(NAME, image, text, ("image", "text"))
    check_pair(NAME, image, text_key, ("image", "text_key"))
    check_pair(NAME, text, image_key, ("text", "image_key"))
    check_same_device(NAME, image, text=text)
    options = check_options(
        NAME,
        image,
        temperature=temperature,
        hardness=hardness,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
        positive_focus=positive_focus,
        tau_plus=tau_plus,
        false_negatives=false_negatives,
        margin=margin,
        in_batch_negatives=in_batch_negatives,
        unit_length=unit_length,
        reduction=reduction,
        backend=backend,
    )
    sides = (
        check_direction(NAME, image, text_key, text_bank, ids, None, options, ids_name="ids"),
        check_direction(NAME, text, image_key, image_bank, ids, None, options, ids_name="ids"),
    )
    if options.backend == "reference":
        loss = (reference_loss(sides[0], options) + reference_loss(sides[1], options)) / 2
        if not return_stats:
            return loss
        return loss, (reference_stats(sides[0], options), reference_stats(sides[1], options))
    positives = sides[0].positive_similarity(), sides[1].positive_similarity()
    passes = _negatives(sides, options, positives, hardest=return_stats)
    (first, first_stats), (second, second_stats) = (
        finish(side, options, exponents, found, positive_s)
        for side, positive_s, (exponents, found) in zip(sides, positives, passes, strict=True)
    )
    loss = (first + second) / 2
    return (loss, (first_stats, second_stats)) if return_stats else loss


def _negatives(
    sides: tuple[Direction, Direction],
    options: Options,
    positives: tuple[Tensor, Tensor],
    *,
    hardest: bool,
) -> list[tuple[Exponents, Sums]]:
    """What the pass over the bank finds for each side, and the exponents of the pass."""
    first, second = sides
    matches = first.match(options, positives[0]), second.match(options, positives[1])
    if alike((first.query, second.query), (first.bank, second.bank)):
        trained = first.query if first.query.wide.requires_grad else second.query
        exponents = options.exponents(trained.wide)
        want = exponents.want(hardest=hardest, unit_length=options.unit_length)
        queries, banks = (first.query, second.query), (first.bank, second.bank)
        pair = bank_pass_pair(queries, banks, exponents, matches, want, options.backend)
        return [(exponents, found) for found in pair]
    results = []
    for side, match in zip(sides, matches, strict=True):
        exponents = options.exponents(side.query.wide)
        want = exponents.want(hardest=hardest, unit_length=options.unit_length)
        found = bank_pass(side.query, side.bank, exponents, match, want, options.backend)
        results.append((exponents, found))
    return results
