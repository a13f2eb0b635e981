"""Weighted InfoNCE of given scores, for models that have no single vector."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from sede_kernels import ops, reference_scores
from sede_kernels.checks import (
    FLOATS,
    check_backend,
    check_ids,
    check_same_device,
    check_weights,
    scalar_parameter,
    shape_of,
)
from sede_kernels.dense import check_dense
from sede_kernels.functional._fused import Keywords, settings_of
from sede_kernels.functional._info_nce import InfoNCEStats
from sede_kernels.score_types import SCORE_TABLE, ScoreLoss, Scores
from sede_kernels.types import ANONYMOUS, EMPTY, result_dtype

NAME = "score_info_nce"
_STATS = tuple(SCORE_TABLE.index(name) for name in ("loss", "positive", "hardest", "log_negatives"))


@overload
def score_info_nce(
    scores: Tensor,
    positive: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    false_negatives: str = "mask",
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[False] = False,
) -> Tensor: ...


@overload
def score_info_nce(
    scores: Tensor,
    positive: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    false_negatives: str = "mask",
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[True],
) -> tuple[Tensor, InfoNCEStats]: ...


def score_info_nce(
    scores: Tensor,
    positive: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    false_negatives: str = "mask",
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    r"""Weighted InfoNCE of given scores: :func:`weighted_info_nce` for models without one vector.

    Of query i with the right score s+ and the scores s_j of its n valid negatives V:
    ``loss = log(e^{s+/tau} + sum_{j in V} w_j e^{s_j/tau}) - s+/tau``, where w = 1 for
    ``hardness`` 0, else w_j = n softmax_V(hardness s)_j, or e^{hardness s_j} without
    ``normalize_weights``. SCAN and BFAN compare fragments, so a score is all that a pair has.

    Args:
        scores: (B, N) float32, bfloat16, float16 or float64, any strides; ``scores.t()`` is the
            other direction of a square matrix. -inf is no negative.
        positive: (B,) right scores, any of these dtypes. None: key i is that of query i, so
            ``scores[i, i]`` is right and no negative; N >= B then.
        valid: (B, N) bool, True where a key may count; None for all.
        temperature: tau > 0, a number or a one-element tensor, which may be learnable.
        hardness: beta >= 0, multiplies the score (not s / tau), a number or a tensor.
        normalize_weights: weights average 1 over the negatives.
        detach_weights: no score gets a gradient through the weights; a hardness tensor does.
        query_ids: (B,) integers >= 0 naming what each query is of; -1 for unknown.
        key_ids: (N,) integers, -1 for no key, such as an empty slot of a bank. None beside
            ``query_ids``: those, where the matrix is square and ``positive`` is None; the key of
            an unknown query is then a negative of all others.
        false_negatives: keys of the query's id: ``mask`` (no negative), ``positive`` (an extra
            positive, uniform soft targets) or ``keep`` (a negative).
        reduction: ``mean``, ``sum`` or ``none``.
        backend: ``auto``, ``reference``, ``torch``, ``cpu`` or ``triton``.
        return_stats: also return :class:`InfoNCEStats`; its ``hardest_index`` is a column.

    Returns:
        The loss, float32 (float64 for float64 scores): scalar, or (B,) with ``none``. A query
        without negatives has loss 0 and gradient 0, unless ``positive`` finds further positives for
        it. With ``return_stats`` also the statistics.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        One read of the scores, and for the gradient one more and one write. Extra memory O(B)
        in the fused backends. ``scores``, ``valid`` and both ids are read again by the backward:
        pass a copy of a bank's ids where the bank is written to in between.

    Gradients:
        scores, positive, and temperature and hardness where they are tensors.

    Source:
        Lee et al. 2018 (SCAN) and Liu et al. 2019 (BFAN) for the scores, with a hinge there; He et
        al. 2020 (MoCo), Robinson et al. 2021 (HCL) for the loss; docs/method.md.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.1], [0.3, 0.6]])
        >>> loss = score_info_nce(scores, temperature=0.1)
        >>> round(loss.item(), 4)
        0.0245
    """
    keywords = Keywords(
        temperature,
        hardness,
        normalize_weights,
        detach_weights,
        0.0,
        0.0,
        false_negatives,
        None,
        False,
        False,
        reduction,
        backend,
    )
    given = _checked(scores, positive, valid, query_ids, key_ids, false_negatives)
    chosen = check_backend(NAME, backend, scores, positive, temperature, hardness)
    if chosen == "reference":
        return _by_reference(given, keywords, return_stats)
    scalars, rule = settings_of(NAME, keywords, scores)
    found = ops.score_info_nce.score_info_nce(given, scalars, rule, chosen)
    return (found.loss, _stats_of(found)) if return_stats else found.loss


def _check_floats(argument: str, tensor: Any, ndim: int, shape: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{NAME}: {argument} must be a torch.Tensor, got {type(tensor).__name__}.")
    check_dense(NAME, argument, tensor)
    if tensor.ndim != ndim:
        raise ValueError(f"{NAME}: {argument} must be {shape}, got shape {shape_of(tensor)}.")
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{NAME}: {argument} must be float32, bfloat16, float16 or float64, "
            f"got {tensor.dtype}; convert it with .float()."
        )


def _checked(
    scores: Any,
    positive: Any,
    valid: Any,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    false_negatives: Any,
) -> Scores:
    """The tensors of a call.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    _check_floats("scores", scores, 2, "(B, N)")
    rows, columns = scores.shape
    if positive is None:
        if columns < rows:
            raise ValueError(
                f"{NAME}: scores must be (B, N) with N >= B, for without positive the key of "
                f"query i is column i, got {shape_of(scores)}; pass positive."
            )
    else:
        _check_floats("positive", positive, 1, "(B,)")
        if positive.shape[0] != rows:
            raise ValueError(
                f"{NAME}: positive must be ({rows},), one per row of scores, "
                f"got {shape_of(positive)}."
            )
    if valid is not None:
        if not isinstance(valid, Tensor):
            raise TypeError(f"{NAME}: valid must be a torch.Tensor, got {type(valid).__name__}.")
        check_dense(NAME, "valid", valid)
        if valid.dtype != torch.bool or valid.shape != scores.shape:
            raise ValueError(
                f"{NAME}: valid must be bool {shape_of(scores)} like scores, "
                f"got {valid.dtype} {shape_of(valid)}."
            )
    ids = check_ids(NAME, "query_ids", query_ids, rows)
    of_keys = check_ids(NAME, "key_ids", key_ids, columns)
    if ids is not None and of_keys is None:
        if positive is not None or rows != columns:
            raise ValueError(
                f"{NAME}: query_ids say nothing without key_ids, one per column of scores "
                f"{shape_of(scores)}; pass key_ids."
            )
        of_keys = ids.masked_fill(ids == EMPTY, ANONYMOUS)  # a key all the same, of nobody else
    if false_negatives == "positive" and ids is None:
        raise ValueError(
            f"{NAME}: false_negatives='positive' finds positives by id; pass query_ids and key_ids."
        )
    check_same_device(NAME, scores, positive=positive, valid=valid, query_ids=ids, key_ids=of_keys)
    return Scores(scores, positive, valid, ids, of_keys)


def _stats_of(found: ScoreLoss) -> InfoNCEStats:
    loss, positive, hardest, log_negatives = (found.table[at] for at in _STATS)
    return InfoNCEStats(
        loss, positive, hardest, found.hardest_index, found.negatives, log_negatives
    )


def _by_reference(
    given: Scores, keywords: Keywords, with_stats: bool
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """The specification, and the statistics by it."""
    check_weights(
        NAME,
        keywords.normalize_weights,
        keywords.detach_weights,
        keywords.false_negatives,
        keywords.reduction,
    )
    dtype = result_dtype(given.scores)
    scores = given.scores.to(dtype)
    positive = None if given.positive is None else given.positive.to(dtype)
    settings: dict[str, Any] = {
        "temperature": scalar_parameter(NAME, "temperature", keywords.temperature, scores),
        "hardness": scalar_parameter(NAME, "hardness", keywords.hardness, scores),
        "normalize_weights": keywords.normalize_weights,
        "detach_weights": keywords.detach_weights,
        "false_negatives": keywords.false_negatives,
        "valid": given.valid,
        "query_ids": given.ids,
        "key_ids": given.key_ids,
    }
    found = reference_scores.score_info_nce(
        scores, positive, **settings, reduction=keywords.reduction
    )
    if not with_stats:
        return found
    with torch.no_grad():
        rows = reference_scores.score_info_nce(scores, positive, **settings, reduction="none")
        stats = reference_scores.statistics(scores, positive, **settings)
        # A view, or the caller's own tensor, carries a gradient even here.
        return found, InfoNCEStats(rows, *(value.detach() for value in stats))
