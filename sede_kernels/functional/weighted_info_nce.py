"""Weighted InfoNCE against a memory bank."""

from typing import Literal, overload

from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import requested
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

NAME = "weighted_info_nce"


@overload
def weighted_info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
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
def weighted_info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
    max_inverse_temperature: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[True],
) -> tuple[Tensor, InfoNCEStats]: ...


def weighted_info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | BankView | None,
    *,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    positive_focus: float = 0.0,
    tau_plus: float = 0.0,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    false_negatives: str = "mask",
    margin: float | None = None,
    limit: Tensor | None = None,
    in_batch_negatives: bool | Tensor = False,
    unit_length: bool = False,
    max_inverse_temperature: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    r"""InfoNCE against a bank of negatives in which harder negatives weigh more.

    With s+ = q.k, s_j = q.m_j, V the valid negatives and n their number:
    ``loss = log(e^{s+/tau} + sum_{j in V} w_j e^{s_j/tau}) - s+/tau``, where w = 1 for
    ``hardness`` 0, else w_j = n softmax_V(hardness s)_j, or e^{hardness s_j} without
    ``normalize_weights``. ``hardness=0`` equals ``F.cross_entropy`` on [s+ | s] / tau.

    Args:
        query: (B, D) float32, bfloat16, float16 or float64, unit length by convention.
        positive: (B, D) the positive key of each query.
        bank: (K, D) tensor (a transposed (D, K) queue too), a ``MemoryBank``, or None with
            ``in_batch_negatives``.
        temperature: tau > 0, a number or a one-element tensor, which may be learnable.
        hardness: beta >= 0 in **cosine units** (it multiplies s, not s / tau), a number or tensor.
        normalize_weights: weights average 1 over the negatives.
        detach_weights: no query gradient through the weights; a hardness tensor gets its own.
        positive_focus: gamma >= 0; rows weigh (1 - e^{-loss})^gamma, detached.
        tau_plus: in [0, 1), the share of false negatives removed by the debiased estimator.
        query_ids: (B,) integers >= 0 naming what each query is of; -1 for unknown.
        bank_ids: (K,) integers, -1 for an empty slot; a ``MemoryBank`` brings its own.
        false_negatives: same id in the bank or batch: ``mask`` (no negative), ``positive`` (an
            extra positive, uniform soft targets) or ``keep`` (a negative).
        margin: negatives with s_j > s+ + margin are left out; None for no bound.
        limit: (B,) floating, in place of a margin: negatives with s_j > limit_i of their row are
            left out, as the verdict of a guide model says. inf bounds nothing; -inf and NaN
            leave no negative. It is detached, and rounded to the dtype of the results.
        in_batch_negatives: the other rows' positives are negatives too and get a gradient. A 0-d
            bool tensor on the device of the query decides without being read on the host.
        unit_length: a promise that queries and bank rows have unit length, up to rounding. A GPU
            kernel then works with a fixed maximum instead of a running one, where 1 / tau + beta
            is a number <= 43. Longer rows may overflow to inf.
        max_inverse_temperature: 1 / tau is at most this, None for no bound: the temperature counts
            as max(tau, 1 / bound), without a gradient where the bound holds it. It lets a
            temperature tensor have the fixed maximum of ``unit_length``.
        reduction: ``none`` (B,), ``mean`` (divided by the sum of the row weights) or ``sum``.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.
        return_stats: also return ``InfoNCEStats``.

    Returns:
        The loss, float32 (float64 for float64 queries); with ``return_stats`` also the statistics.
        A row without negatives has loss 0 and gradient 0, unless ``positive`` finds further
        positives for it: their soft targets count. A NaN row stays in its row of ``none``; no rows
        at all give 0.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        4BKD FLOPs and one read of the bank, gradient included (2BKD without; 6BKD for attached
        normalised weights). Extra memory O(B D), never B x K. ``false_negatives="positive"``
        takes a second pass.

    Gradients:
        query, positive, and temperature and hardness where they are tensors. Never the bank.

    Source:
        He et al. 2020 (MoCo), Robinson et al. 2021 (HCL), Chuang et al. 2020 (debiased), Li et al.
        2021 (ALBEF, soft targets); in the style of Pan & Huang 2022 (SEDE), see docs/method.md.

    Example:
        >>> import torch
        >>> query = torch.eye(4)[:2]
        >>> loss = weighted_info_nce(query, query, torch.eye(4)[2:], temperature=1.0)
        >>> round(loss.item(), 4)
        0.5514
    """
    given = Given(query, positive, bank, query_ids, bank_ids, limit=limit)
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
    found = at_once(NAME, (given,), values, return_stats)
    if found is None:
        chosen = requested(NAME, backend)
        limited = bounded(NAME, temperature, max_inverse_temperature, query)
        keywords = Keywords(limited, *values[1:-2], chosen, max_inverse_temperature)
        if chosen == "reference":
            check_pair(NAME, query, positive)
            options = check_options(NAME, query, **keywords.plain())
            direction = check_direction(
                NAME, query, positive, bank, query_ids, bank_ids, options, limit=limit
            )
            plain = reference_loss(direction, options)
            return (plain, reference_stats(direction, options)) if return_stats else plain
        found = fused(NAME, (given,), keywords, hardest=return_stats)
    return (found.loss, stats_of(found, 0)) if return_stats else found.loss
