"""A bank for wrappers that call one loss several times a step, on narrower or earlier outputs."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.bank import EMPTY, BankView, MemoryBank
from sede_kernels.ring import ids_where


def wrapper_of(model: nn.Module) -> Any:
    """What a wrapper has put in the place of ``model.forward`` for this step, or None.

    MatryoshkaLoss, AdaptiveLayerLoss and their combination make a new one each step, whose ``fn``
    is the forward that they found.
    """
    inner = model
    while "forward" not in vars(inner):
        nested = getattr(inner, "_orig_mod", None)
        nested = getattr(inner, "module", None) if nested is None else nested
        if not isinstance(nested, nn.Module):
            return None
        inner = nested
    found = vars(inner)["forward"]
    while hasattr(getattr(found, "fn", None), "fn"):
        found = found.fn
    return found if hasattr(found, "fn") else None


class Before(NamedTuple):
    """What the first call of a step overwrote in the bank.

    Attributes:
        slots: (N,) that were written.
        rows: (N, D), ids: (N,), row_scale: (N,) or None, as they were.
        warm: whether the bank took part.
    """

    slots: Tensor
    rows: Tensor
    ids: Tensor
    row_scale: Tensor | None
    warm: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, bank: MemoryBank, count: int, warm: Tensor | None) -> "Before":
        """To be taken right before ``count`` keys are stored."""
        size = bank.rows.shape[0]
        places = torch.arange(min(count, size), device=bank.ids.device)
        slots = (bank.ptr + max(0, count - size) + places) % size
        scale = None if bank.row_scale is None else bank.row_scale[slots]
        return cls(slots, bank.rows[slots], bank.ids[slots], scale, warm)


class Step:
    """Which calls belong to one step, and the bank as it was when the step began.

    The first call of the bank's own width stores its keys; the calls after it still see the rows
    that these keys replaced, so that no call meets its own batch among the negatives.
    """

    def __init__(self) -> None:
        self._token: weakref.ref[Any] | None = None
        self._before: Before | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_token": None, "_before": None}

    def begin(self, token: Any) -> None:
        """A call of the step ``token``; None where nobody repeats calls."""
        if token is None and self._token is None:
            return
        if token is None or self._token is None or self._token() is not token:
            self._token = None if token is None else weakref.ref(token)
            self._before = None

    @property
    def repeats(self) -> bool:
        """Whether a wrapper calls."""
        return self._token is not None

    @property
    def stored(self) -> bool:
        """Whether an earlier call of this step has stored its keys."""
        return self._before is not None

    def remember(self, bank: MemoryBank, count: int, warm: Tensor | None) -> None:
        """Called right before ``count`` keys are stored."""
        if self.repeats:
            self._before = Before.of(bank, count, warm)

    @torch.no_grad()
    def view(
        self, bank: MemoryBank, width: int, warm: Tensor | None, dtype: torch.dtype
    ) -> MemoryBank | BankView:
        """The bank at the start of the step, its rows cut to ``width`` and then of unit length.

        Cost:
            Nothing in the first call of the bank's own width, else a copy (K, width).
        """
        before = self._before
        if before is None and width == bank.rows.shape[1]:
            return bank.where(warm)
        rows, ids, scale = bank.rows[:, :width].to(dtype, copy=True), bank.ids, bank.row_scale
        if before is not None:
            warm = before.warm
            rows[before.slots] = before.rows[:, :width].to(dtype)
            ids = ids.index_copy(0, before.slots, before.ids)
            if scale is not None and before.row_scale is not None:
                scale = scale.index_copy(0, before.slots, before.row_scale)
        if scale is not None:
            rows *= scale.to(dtype).unsqueeze(1)
        if width < bank.rows.shape[1]:
            rows = F.normalize(rows, dim=1)
        rows = rows.masked_fill((ids == EMPTY).unsqueeze(1), 0.0)
        ids = ids if warm is None else ids_where("view", warm, ids)
        return BankView(rows, None, ids, bank.shard)
