"""The weighted InfoNCE of one direction, around its pass over the negatives.

``weighted_info_nce`` and ``symmetric_info_nce`` are made of these.
"""

from typing import NamedTuple

from torch import Tensor

from sede_kernels import reference
from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import (
    check_backend,
    check_flag,
    check_float_matrix,
    check_ids,
    check_info_nce,
    check_limit,
    check_same_device,
    scalar_parameter,
    shape_of,
)
from sede_kernels.functional._bank_argument import training_shard, unpack_bank
from sede_kernels.functional._rows import Rows, rows_of
from sede_kernels.ops.sharded import reduced, whole_bank
from sede_kernels.ops.transforms import check_transforms
from sede_kernels.types import Bank, Match, Shard, result_dtype


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


class Options(NamedTuple):
    """The keywords of a loss, checked."""

    temperature: float | Tensor
    hardness: float | Tensor
    normalize_weights: bool
    detach_weights: bool
    positive_focus: float
    tau_plus: float
    false_negatives: str
    margin: float | None
    in_batch_negatives: bool | Tensor
    unit_length: bool
    reduction: str
    backend: str

    @property
    def select(self) -> str:
        """Which entries of the bank are negatives."""
        return "keep" if self.false_negatives == "keep" else "mask"


class Direction(NamedTuple):
    """The tensors of one direction, checked."""

    query: Rows
    positive: Rows
    bank: Bank
    ids: Tensor | None  # (B,)
    shard: Shard | None = None  # where several ranks hold the bank
    limit: Tensor | None = None  # (B,)

    def positive_similarity(self) -> Tensor:
        """s+ (B,) in the dtype of the results."""
        return (self.query.wide * self.positive.wide).sum(dim=1)

    def match(self, options: Options, positive_s: Tensor) -> Match:
        """Which rows are negatives, by id and, with a margin or limit, by similarity."""
        limit = self.limit
        if options.margin is not None:
            limit = positive_s.detach() + options.margin
        return Match(self.ids, limit, options.select)


def check_options(
    name: str,
    query: Tensor,
    *,
    temperature: float | Tensor,
    hardness: float | Tensor,
    normalize_weights: bool,
    detach_weights: bool,
    positive_focus: float,
    tau_plus: float,
    false_negatives: str,
    margin: float | None,
    in_batch_negatives: bool | Tensor,
    unit_length: bool,
    reduction: str,
    backend: str,
) -> Options:
    """The keywords that ``weighted_info_nce`` documents.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    check_info_nce(
        name,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
        positive_focus=positive_focus,
        tau_plus=tau_plus,
        false_negatives=false_negatives,
        margin=margin,
        in_batch_negatives=in_batch_negatives,
        unit_length=unit_length,
        reduction=reduction,
    )
    if isinstance(in_batch_negatives, Tensor):
        check_flag(name, "in_batch_negatives", in_batch_negatives, query)
    chosen = check_backend(name, backend, query, temperature, hardness)
    return Options(
        scalar_parameter(name, "temperature", temperature, query),
        scalar_parameter(name, "hardness", hardness, query),
        normalize_weights,
        detach_weights,
        float(positive_focus),
        float(tau_plus),
        false_negatives,
        margin,
        in_batch_negatives,
        unit_length,
        reduction,
        chosen,
    )


def check_pair(
    name: str, query: Tensor, positive: Tensor, names: tuple[str, str] = ("query", "positive")
) -> None:
    """Two floating matrices of one shape."""
    check_float_matrix(name, names[0], query)
    check_float_matrix(name, names[1], positive)
    if query.shape != positive.shape:
        raise ValueError(
            f"{name}: {names[1]} must be {shape_of(query)} to match {names[0]}, "
            f"got {shape_of(positive)}."
        )


def check_direction(
    name: str,
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | BankView | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    options: Options,
    *,
    ids_name: str = "query_ids",
    limit: Tensor | None = None,
) -> Direction:
    """The tensors of one direction; ``check_pair`` comes first."""
    check_same_device(name, query, positive=positive, bank_ids=bank_ids, **{ids_name: query_ids})
    if options.false_negatives == "positive" and query_ids is None:
        raise ValueError(
            f"{name}: false_negatives='positive' finds positives by id; pass {ids_name}."
        )
    if options.backend != "reference":
        check_transforms(name, positive)
    ids = check_ids(name, ids_name, query_ids, query.shape[0])
    limit = check_limit(name, limit, options.margin, query)
    if bank is None:
        if options.in_batch_negatives is False:
            raise ValueError(
                f"{name}: bank is None, so there are no negatives; pass a bank or "
                "in_batch_negatives=True."
            )
        bank = query.detach()[:0]
    dtype = result_dtype(query)
    tensors, shard = unpack_bank(name, query, bank, bank_ids), training_shard(bank)
    if shard is not None and options.backend == "reference":
        tensors = whole_bank(tensors, shard)
    return Direction(rows_of(query, dtype), rows_of(positive, dtype), tensors, ids, shard, limit)


def reference_loss(direction: Direction, options: Options) -> Tensor:
    """The specification of the loss, in plain autograd."""
    query, positive, bank, ids, shard, limit = direction
    shared = shard is not None and shard.group != ""
    loss = reference.weighted_info_nce(
        query.wide,
        positive.wide,
        bank.dense(query.wide.dtype),
        temperature=options.temperature,
        hardness=options.hardness,
        normalize_weights=options.normalize_weights,
        detach_weights=options.detach_weights,
        positive_focus=0.0 if shared else options.positive_focus,
        tau_plus=options.tau_plus,
        query_ids=ids,
        bank_ids=bank.ids,
        false_negatives=options.false_negatives,
        margin=options.margin,
        limit=limit,
        in_batch_negatives=options.in_batch_negatives,
        reduction="none" if shared else options.reduction,
    )
    if shard is None or not shared:
        return loss
    weight, _ = reduced(loss.detach(), options.positive_focus, options.reduction, shard)
    return weight * loss if options.reduction == "none" else (weight * loss).sum()
