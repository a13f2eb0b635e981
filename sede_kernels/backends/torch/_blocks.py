"""What the blocked ops share: block sizes, dense bank blocks, valid slots."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sede_kernels.types import EMPTY, Bank, Match

# Elements of one block of similarities: 4 MB in fp32, which stays in a last-level cache.
_BLOCK_ELEMENTS = 1 << 20


def blocks(total: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) ranges over ``total`` bank rows so that rows x block stays small."""
    size = max(256, min(8192, _BLOCK_ELEMENTS // max(rows, 1)))
    for start in range(0, total, size):
        yield start, min(start + size, total)


def dense_block(part: Bank, dtype: torch.dtype) -> Tensor:
    """Rows of a bank [J, D] in ``dtype``; empty slots are zeroed, for they may hold anything."""
    rows = part.dense(dtype)
    return rows if part.ids is None else rows.masked_fill((part.ids == EMPTY).unsqueeze(1), 0.0)


def valid_block(match: Match, bank_ids: Tensor | None, s: Tensor) -> Tensor | None:
    """Selectable slots of s (B, J), (B or 1, J) bool; None where every slot is one.

    Without ids on both sides nothing has an id of its own: no slot is a "positive". The limit is
    left to the caller.
    """
    if match.select == "positive" and (match.ids is None or bank_ids is None):
        return s.new_zeros((1, s.shape[1]), dtype=torch.bool)
    if bank_ids is None:
        return None
    filled = (bank_ids != EMPTY).unsqueeze(0)
    if match.select == "keep" or match.ids is None:
        return filled
    same = match.ids.unsqueeze(1) == bank_ids.unsqueeze(0)
    return filled & (same if match.select == "positive" else ~same)
