"""What travels together between the functions, the ops and the backends.

Each is one value from ``functional`` to the launcher of a kernel, in every backend, and mirrors a
struct of csrc/kernels/api.h. B queries, K bank rows, D columns, E exponents, A accumulators.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: The id of an empty slot of a bank, and of a key that came without an id.
EMPTY, ANONYMOUS = -1, -2


def result_dtype(query: Tensor) -> torch.dtype:
    """fp64 for fp64 queries, else fp32: the dtype of every floating result of an op."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


class Bank(NamedTuple):
    """A bank as kernels read it."""

    rows: Tensor  # (K, D), any strides
    row_scale: Tensor | None = None  # (K,) float32 of an int8 bank: row j is row_scale[j] * rows[j]
    ids: Tensor | None = None  # (K,) int64, EMPTY for an empty slot

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(K, D) in ``dtype``: what the reference takes."""
        rows = self.rows.to(dtype)
        return rows if self.row_scale is None else rows * self.row_scale.to(dtype).unsqueeze(1)

    def part(self, start: int, stop: int) -> "Bank":
        """Rows start to stop."""
        scale = None if self.row_scale is None else self.row_scale[start:stop]
        ids = None if self.ids is None else self.ids[start:stop]
        return Bank(self.rows[start:stop], scale, ids)


class Shard(NamedTuple):
    """Which part of a bank that several ranks hold is here; without a group it stands alone."""

    rank: int = 0
    world: int = 1
    offset: int = 0  # of the first row, among those of all ranks in rank order
    size: int = 0  # K, the rows of all ranks
    group: str = ""  # name of the process group; "" for no collective
    max_batch: int = -1  # queries that every rank pads to; -1 to ask for the sizes first


class Match(NamedTuple):
    """Which rows count for a query."""

    ids: Tensor | None = None  # (B,) int64: a row of the same id is none of its negatives
    limit: Tensor | None = None  # (B,) largest similarity that counts
    select: str = "mask"  # filled slots but those of the query's id; "positive": only those; "keep"

    def of_side(self, side: int) -> "Match":
        """Of one of two banks, where the limits are (2, B)."""
        return self if self.limit is None else self._replace(limit=self.limit[side])


class Want(NamedTuple):
    """What a pass over the negatives is to find besides the log-sum-exps."""

    accumulate: tuple[int, ...] = ()  # the exponents whose weighted row sums are kept
    moments: bool = False  # the mean similarity at each exponent
    hardest: bool = False  # the most similar row and its index
    unit_length: bool = False  # a promise: rows of at most unit length, exponents <= STATIC_LIMIT

    def order(self, exponents: int) -> list[int]:
        """At least three exponents, those of the accumulators first: how kernels number them."""
        rest = (e for e in range(exponents) if e not in self.accumulate)
        return [*self.accumulate, *rest, 0, 0, 0]


class Sums(NamedTuple):
    """What a pass finds; what was not wanted has size 0."""

    lse: Tensor  # (E, B)
    moment: Tensor  # (E | 0, B)
    acc: Tensor  # (A, B, D)
    negatives: Tensor  # (B,) int64, how many rows counted
    hardest: Tensor  # (B | 0,) the largest similarity, -inf where none counted
    hardest_index: Tensor  # (B | 0,) int64, -1 where none counted

    @classmethod
    def empty(cls, query: Tensor, exponents: int, want: Want) -> "Sums":
        """Memory for what a pass finds for ``query`` (B, D), or (2, B, D) of two banks."""
        *sides, rows, dim = query.shape
        ranked, dtype = rows if want.hardest else 0, result_dtype(query)
        return cls(
            query.new_empty((*sides, exponents, rows), dtype=dtype),
            query.new_empty((*sides, exponents if want.moments else 0, rows), dtype=dtype),
            query.new_empty((*sides, len(want.accumulate), rows, dim), dtype=dtype),
            query.new_empty((*sides, rows), dtype=torch.int64),
            query.new_empty((*sides, ranked), dtype=dtype),
            query.new_empty((*sides, ranked), dtype=torch.int64),
        )

    @classmethod
    def none(cls, query: Tensor, exponents: int, want: Want) -> "Sums":
        """What a pass over nothing finds."""
        found = cls.empty(query, exponents, want)
        for value, fill in zip(found, (-torch.inf, 0, 0, 0, -torch.inf, -1), strict=True):
            value.fill_(fill)
        return found


class BatchSums(NamedTuple):
    """What a pass over the other rows of a batch finds; what was not wanted has size 0."""

    lse: Tensor  # (E, B)
    moment: Tensor  # (E | 0, B)
    negatives: Tensor  # (B,) int64
    hardest: Tensor  # (B | 0,)
    kept: Tensor  # similarities for the backward, flat, in the order of the backend

    @classmethod
    def empty(cls, query: Tensor, exponents: int, want: Want, kept: int) -> "BatchSums":
        """Memory for what a pass finds for ``query`` (B, D) and for what it keeps."""
        found = Sums.empty(query, exponents, want)
        room = found.lse.new_empty((kept,))
        return cls(found.lse, found.moment, found.negatives, found.hardest, room)


class SideGradients(NamedTuple):
    """The gradients of both sides of a similarity; one that was not wanted has size 0."""

    first: Tensor  # of the queries, or the regions
    second: Tensor  # of the keys, or the words

    @classmethod
    def empty(cls, first: Tensor, second: Tensor, wanted: tuple[bool, bool]) -> "SideGradients":
        """Memory for those that are wanted, in the dtype of the results."""
        dtype = result_dtype(first)
        return cls(
            *(
                side.new_empty(side.shape if asked else (0,), dtype=dtype)
                for side, asked in zip((first, second), wanted, strict=True)
            )
        )


class Ranked(NamedTuple):
    """The most similar rows of a bank; (-inf, -1) where fewer are valid."""

    values: Tensor  # (B, k), descending
    indices: Tensor  # (B, k) int64, the lowest first where values are equal

    @classmethod
    def empty(cls, query: Tensor, k: int) -> "Ranked":
        """Memory for the ranks of ``query`` (B, D)."""
        shape = (query.shape[0], k)
        return cls(
            query.new_empty(shape, dtype=result_dtype(query)),
            query.new_empty(shape, dtype=torch.int64),
        )


class RingState(NamedTuple):
    """The buffers of a ring of K slots, written in place."""

    rows: Tensor  # (K, D)
    row_scale: Tensor | None  # (K,) float32 of an int8 ring
    ids: Tensor  # (K,) int64
    ptr: Tensor  # () int64, the slot that is written next
    filled: Tensor  # () int64, how many slots are
    rejected: Tensor  # () int64, keys that were not stored


class FragmentRing(NamedTuple):
    """The buffers of a ring of K sets of at most L fragments, written in place."""

    rows: Tensor  # (K, L, D)
    lengths: Tensor  # (K,) int64
    ids: Tensor  # (K,) int64
    ptr: Tensor  # () int64, as in ``RingState``
    filled: Tensor
    rejected: Tensor


class RankedRows(NamedTuple):
    """The most similar rows of a bank that several ranks hold, and those rows if wanted."""

    values: Tensor  # (B, k), descending
    indices: Tensor  # (B, k) int64, among the rows of all ranks; the lowest first where equal
    rows: Tensor  # (B, k, D), or (B, 0, D)

    @classmethod
    def empty(cls, query: Tensor, k: int, with_rows: bool) -> "RankedRows":
        """Memory for the ranks of ``query`` (B, D)."""
        found = Ranked.empty(query, k)
        shape = (query.shape[0], k if with_rows else 0, query.shape[1])
        return cls(*found, query.new_empty(shape, dtype=result_dtype(query)))


class Side(NamedTuple):
    """One direction of the weighted InfoNCE: queries, their positives, a bank of negatives."""

    query: Tensor  # (B, D)
    positive: Tensor  # (B, D)
    rows: Tensor  # (K, D) the bank, as in ``Bank``; K may be 0
    row_scale: Tensor | None = None
    bank_ids: Tensor | None = None
    ids: Tensor | None = None  # (B,) int64
    limit: Tensor | None = None  # (B,) largest similarity of a negative, in the results' dtype

    @property
    def bank(self) -> Bank:
        """The bank."""
        return Bank(self.rows, self.row_scale, self.bank_ids)


class Scalars(NamedTuple):
    """The numbers of the weighted InfoNCE; a 0-d tensor, where there is one, counts instead."""

    temperature: float
    hardness: float = 0.0
    margin: float = 0.0
    temperature_at: Tensor | None = None  # () float32 or float64
    hardness_at: Tensor | None = None
    margin_at: Tensor | None = None
    batch_at: Tensor | None = None  # () bool: whether the batch has negatives


class InfoNCERule(NamedTuple):
    """Which weighted InfoNCE, and what of it; see ``weighted_info_nce``."""

    weighted: bool  # the hardness counts
    normalize_weights: bool = True
    detach_weights: bool = True
    positive_focus: float = 0.0
    tau_plus: float = 0.0
    false_negatives: str = "mask"
    margin: bool = False
    in_batch: bool = False
    unit_length: bool = False  # a promise, as in ``Want``
    reduction: str = "mean"
    hardest: bool = False  # statistics
    query_grad: bool = False  # a gradient of the queries will be asked for
    scalar_grad: bool = False  # a gradient of temperature or hardness will be
    keep: bool = False  # a gradient of in-batch negatives will be

    @property
    def exponents(self) -> int:
        """Log-sum-exps a row."""
        return 2 if self.weighted and self.normalize_weights else 1

    @property
    def accumulate(self) -> tuple[int, ...]:
        """Those whose weighted row sums are gradients."""
        if not self.query_grad:
            return ()
        return (0,) if self.exponents == 1 or self.detach_weights else (0, 1)

    @property
    def select(self) -> str:
        """Which rows of a bank are negatives."""
        return "keep" if self.false_negatives == "keep" else "mask"

    @property
    def extra_positives(self) -> bool:
        """Rows of the query's id are positives too."""
        return self.false_negatives == "positive"


#: The rows of ``InfoNCE.table``, as in csrc/info_nce.h. From "lse" on they are for the backward of
#: in-batch negatives, in pairs; a row that nobody asked for may hold anything finite or -inf.
TABLE = (
    "loss", "weight", "positive", "log_negatives", "hardest", "positive_grad", "temperature_grad",
    "hardness_grad", "lse", "lse_1", "lse_grad", "lse_grad_1", "extra_lse", "extra_lse_1",
    "extra_grad", "extra_grad_1",
)  # fmt: skip


class InfoNCE(NamedTuple):
    """The weighted InfoNCE of S sides and all that its backward needs; not wanted: size 0."""

    loss: Tensor  # () or (B,)
    table: Tensor  # (S, len(TABLE), B), gradients for an upstream gradient of 1
    query_grad: Tensor  # (S, B, D), likewise
    negatives: Tensor  # (S, B) int64
    hardest_index: Tensor  # (S, B) int64
    kept: Tensor  # (S, n) similarities of the batch

    @classmethod
    def empty(cls, query: Tensor, sides: int, rule: InfoNCERule, kept: int) -> "InfoNCE":
        """Memory for the loss of ``query`` (B, D)."""
        dtype, (rows, dim) = result_dtype(query), query.shape
        ranked = rows if rule.hardest else 0
        size = (rows,) if rule.reduction == "none" else ()
        return cls(
            query.new_empty(size, dtype=dtype),
            query.new_empty((sides, len(TABLE), rows), dtype=dtype),
            query.new_empty((sides, rows, dim) if rule.query_grad else (0,), dtype=dtype),
            query.new_empty((sides, ranked), dtype=torch.int64),
            query.new_empty((sides, ranked), dtype=torch.int64),
            query.new_empty((sides, kept), dtype=dtype),
        )


class InfoNCEGradients(NamedTuple):
    """The gradients of the weighted InfoNCE; one that was not wanted has size 0."""

    query: Tensor  # (B, D), these four in the dtype of what they belong to
    positive: Tensor
    other_query: Tensor
    other_positive: Tensor
    temperature: Tensor  # () float32 or float64
    hardness: Tensor

    @classmethod
    def empty(
        cls,
        grad: Tensor,
        side: Side,
        other: Side | None,
        needs: tuple[int, ...],
        spare: Tensor | None = None,
    ) -> "InfoNCEGradients":
        """Dense memory for those that are needed, of an upstream gradient ``grad``.

        ``spare`` stands for the others; without it each has a tensor of size 0, since no two
        results of an op may be one tensor.
        """
        last = side if other is None else other
        like = (side.query, side.positive, last.query, last.positive, None, None)
        found = []
        for tensor, needed in zip(like, needs, strict=True):
            if not needed:
                one = grad if tensor is None else tensor
                found.append(one.new_empty((0,)) if spare is None else spare)
            elif tensor is None:
                found.append(grad.new_empty(()))
            else:
                found.append(torch.empty_like(tensor, memory_format=torch.contiguous_format))
        return cls(*found)
