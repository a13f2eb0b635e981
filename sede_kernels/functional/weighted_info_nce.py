"""Weighted InfoNCE against a memory bank."""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels import reference
from sede_kernels.bank import MemoryBank
from sede_kernels.functional._bank_argument import BankTensors, unpack_bank
from sede_kernels.functional._checks import (
    check_backend,
    check_choice,
    check_float_matrix,
    check_ids,
    check_number,
    check_same_device,
    scalar_parameter,
    shape_of,
)
from sede_kernels.functional._exponents import (
    Exponents,
    Scalar,
    constants,
    full_precision,
    log_negatives,
    plan,
)
from sede_kernels.functional._negatives import bank_pass, with_batch
from sede_kernels.ops.bank_lse import result_dtype

NAME = "weighted_info_nce"
FALSE_NEGATIVES = ("mask", "positive", "keep")


class InfoNCEStats(NamedTuple):
    """What the pass over the negatives knows of each row; all (B,) and detached.

    Attributes:
        loss: the row losses before ``positive_focus`` and the reduction.
        positive: similarity with the positive key, in cosine units.
        hardest: largest similarity among the negatives, -inf without one.
        hardest_index: its row in the bank, -1 where the batch holds it or there is none.
        negatives: how many negatives the row had (n_i), int64.
        log_negatives: LN_i, the log of the weighted sum over the negatives.
    """

    loss: Tensor
    positive: Tensor
    hardest: Tensor
    hardest_index: Tensor
    negatives: Tensor
    log_negatives: Tensor


def _extra_positives(
    query: Tensor,
    positive: Tensor,
    bank: BankTensors,
    ids: Tensor | None,
    positive_s: Tensor,
    it: Scalar,
    *,
    in_batch: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Log-sum over all positives and their mean logit (B,): soft targets, uniform over same ids."""
    differentiable = torch.is_grad_enabled() and query.requires_grad
    # Exponent 0 weighs every positive alike: its accumulator is their mean, free of the query.
    exponents = Exponents(
        constants([it, 0.0], query),
        constants([it, 0.0], query).detach(),
        [0, 1] if differentiable else [1],
        False,
    )
    found, acc = bank_pass(
        query,
        bank,
        ids,
        exponents,
        limit=None,
        select="positive",
        hardest=False,
        backend=backend,
    )
    q = query.to(positive_s.dtype)
    log_extra, count = found.lse[0], found.number
    total = (q * acc[-1].detach()).sum(dim=1) * count
    if in_batch and ids is not None:
        same = (ids.unsqueeze(1) == ids.unsqueeze(0)) & (ids != -1)
        own = torch.eye(ids.shape[0], dtype=torch.bool, device=ids.device)
        weight = (same & ~own).to(q.dtype)
        batch = with_batch(
            found,
            query,
            positive,
            ids,
            exponents,
            limit=None,
            select="positive",
            hardest=False,
            backend=backend,
        )
        log_extra, count = batch.lse[0], batch.number
        with full_precision(query.device.type):
            total = total + (q * (weight @ positive.to(q.dtype))).sum(dim=1)
    logit = it * positive_s
    return torch.logaddexp(logit, log_extra), it * (positive_s + total) / (1 + count)


def _check(
    query: Tensor,
    positive: Tensor,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    false_negatives: str,
    margin: float | None,
    reduction: str,
) -> None:
    check_float_matrix(NAME, "query", query)
    check_float_matrix(NAME, "positive", positive)
    if query.shape != positive.shape:
        raise ValueError(
            f"{NAME}: positive must be {shape_of(query)} to match query, got {shape_of(positive)}."
        )
    check_same_device(NAME, query, positive=positive, query_ids=query_ids, bank_ids=bank_ids)
    check_choice(NAME, "false_negatives", false_negatives, FALSE_NEGATIVES)
    check_choice(NAME, "reduction", reduction, ("none", "mean", "sum"))
    if false_negatives == "positive" and query_ids is None:
        raise ValueError(
            f"{NAME}: false_negatives='positive' finds positives by id; pass query_ids."
        )
    if margin is not None:
        check_number(NAME, "margin", margin)


def weighted_info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | None,
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
    in_batch_negatives: bool = False,
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
        margin: negatives with s_j > s+ + margin are left out; None for no limit.
        in_batch_negatives: the other rows' positives are negatives too and get a gradient.
        reduction: ``none`` (B,), ``mean`` (divided by the sum of the row weights) or ``sum``.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.
        return_stats: also return ``InfoNCEStats``.

    Returns:
        The loss, float32 (float64 for float64 queries); with ``return_stats`` also the statistics.
        A row without negatives has loss 0 and gradient 0; a NaN row stays in its row of ``none``;
        no rows at all give 0.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came.
        BackendUnavailableError: an explicit backend cannot serve the call.

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
        >>> query = torch.eye(4)[:2]
        >>> loss = weighted_info_nce(query, query, torch.eye(4)[2:], temperature=1.0)
        >>> round(loss.item(), 4)
        0.5514
    """
    _check(query, positive, query_ids, bank_ids, false_negatives, margin, reduction)
    chosen = check_backend(NAME, backend)
    focus = check_number(NAME, "positive_focus", positive_focus, low=0.0)
    prior = check_number(NAME, "tau_plus", tau_plus, low=0.0, high=1.0)
    if prior == 1.0:
        raise ValueError(f"{NAME}: tau_plus must be below 1, got 1.")
    tau = scalar_parameter(NAME, "temperature", temperature, query, open_low=True)
    beta = scalar_parameter(NAME, "hardness", hardness, query, open_low=False)
    ids = check_ids(NAME, "query_ids", query_ids, query.shape[0])
    if bank is None:
        if not in_batch_negatives:
            raise ValueError(
                f"{NAME}: bank is None, so there are no negatives; pass a bank or "
                "in_batch_negatives=True."
            )
        bank = query.detach()[:0]
    tensors = unpack_bank(NAME, query, bank, bank_ids)
    dtype = result_dtype(query)
    if chosen == "reference" and not return_stats:
        return reference.weighted_info_nce(
            query.to(dtype),
            positive.to(dtype),
            tensors.dense(dtype),
            temperature=tau,
            hardness=beta,
            normalize_weights=normalize_weights,
            detach_weights=detach_weights,
            positive_focus=focus,
            tau_plus=prior,
            query_ids=ids,
            bank_ids=tensors.ids,
            false_negatives=false_negatives,
            margin=margin,
            in_batch_negatives=in_batch_negatives,
            reduction=reduction,
        )
    if chosen == "reference":
        raise ValueError(f"{NAME}: return_stats needs a kernel backend, got backend='reference'.")

    positive_s = (query.to(dtype) * positive.to(dtype)).sum(dim=1)
    it: Scalar = 1.0 / tau
    exponents = plan(
        it,
        beta,
        query,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
        differentiable=torch.is_grad_enabled() and query.requires_grad,
    )
    limit = None if margin is None else positive_s.detach() + margin
    select = "keep" if false_negatives == "keep" else "mask"
    found, _ = bank_pass(
        query,
        tensors,
        ids,
        exponents,
        limit=limit,
        select=select,
        hardest=return_stats,
        backend=chosen,
    )
    if in_batch_negatives:
        found = with_batch(
            found,
            query,
            positive,
            ids,
            exponents,
            limit=limit,
            select=select,
            hardest=return_stats,
            backend=chosen,
        )
    logit = it * positive_s
    negatives = log_negatives(found.lse, found.number, exponents)
    if prior:
        inverse = it if isinstance(it, Tensor) else constants([it], query)[0]
        negatives = reference.debias(negatives, logit, found.number, inverse, prior)
    log_positives = mean_logit = logit
    if false_negatives == "positive":
        log_positives, mean_logit = _extra_positives(
            query,
            positive,
            tensors,
            ids,
            positive_s,
            it,
            in_batch=in_batch_negatives,
            backend=chosen,
        )
    # log(1 + e^x) of the difference: a loss near 0 keeps its digits beside logits of 1 / tau.
    above = negatives - log_positives
    rows = torch.logaddexp(above.new_zeros(()), above) + (log_positives - mean_logit)
    loss = reference.reduce_loss(rows, focus, reduction)
    if not return_stats:
        return loss
    stats = InfoNCEStats(
        rows.detach(),
        positive_s.detach(),
        found.top,
        found.top_index,
        found.number,
        negatives.detach(),
    )
    return loss, stats
