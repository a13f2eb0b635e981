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


class Match(NamedTuple):
    """Which rows count for a query."""

    ids: Tensor | None = None  # (B,) int64: a row of the same id is none of its negatives
    limit: Tensor | None = None  # (B,) largest similarity that counts
    select: str = "mask"  # filled slots but those of the query's id; "positive": only those; "keep"


class Want(NamedTuple):
    """What a pass over the negatives is to find besides the log-sum-exps."""

    accumulate: tuple[int, ...] = ()  # the exponents whose weighted row sums are kept
    moments: bool = False  # the mean similarity at each exponent
    hardest: bool = False  # the most similar row and its index
    unit_length: bool = False  # a promise: rows of at most unit length, exponents <= STATIC_LIMIT


class Sums(NamedTuple):
    """What a pass finds; what was not wanted has size 0."""

    lse: Tensor  # (E, B)
    moment: Tensor  # (E | 0, B)
    acc: Tensor  # (A, B, D)
    negatives: Tensor  # (B,) int64, how many rows counted
    hardest: Tensor  # (B | 0,) the largest similarity, -inf where none counted
    hardest_index: Tensor  # (B | 0,) int64, -1 where none counted


class Erase(NamedTuple):
    """How attention is erased; ``side`` is the side that goes, ``low`` or ``high``."""

    rule: str
    threshold: float = 0.0
    side: str = "low"
    keep_min: int = 1
    renormalize: bool = True
