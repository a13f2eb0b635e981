"""The ``bank`` argument of the functions: a dense tensor or a MemoryBank, unpacked and checked."""

from typing import Any

import torch
from torch import Tensor

from sede_kernels import ops
from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import FLOATS, check_ids, check_same_device, shape_of
from sede_kernels.dense import check_dense, is_dense
from sede_kernels.types import Bank, Shard, Side

_DTYPES = frozenset((*FLOATS, torch.int8))


def bank_as_it_came(bank: Tensor | MemoryBank | BankView, bank_ids: Tensor | None) -> Bank | None:
    """The tensors of a bank that is whole here, unchecked; None where there is more to see to."""
    if isinstance(bank, Tensor):
        return Bank(bank, None, bank_ids)
    if bank_ids is not None:
        return None
    if isinstance(bank, MemoryBank):
        held = bank.glance()
        return None if held is None else Bank(*held)
    if isinstance(bank, BankView) and bank.shard is None:
        return Bank(bank.rows, bank.row_scale, bank.ids)
    return None


def side_as_it_came(
    query: Tensor,
    positive: Tensor,
    bank: Tensor | MemoryBank | BankView | None,
    ids: Tensor | None,
    bank_ids: Tensor | None,
) -> Side | None:
    """The arguments as kernels take them, unchecked; None where there is more to see to."""
    row_scale = None
    if isinstance(bank, MemoryBank):
        if bank_ids is not None:
            return None
        rows, row_scale, bank_ids = bank.glance() or bank.view()[:3]
    elif isinstance(bank, Tensor):
        rows = bank.detach() if bank.requires_grad else bank
    elif isinstance(bank, BankView) and bank_ids is None:
        rows, row_scale, bank_ids, _ = bank
    else:
        return None
    return Side(query, positive, rows, row_scale, bank_ids, ids)


def seen_to_fit(side: Side) -> Side | None:
    """The side where nothing about its tensors has to be converted or refused, else None.

    One look in native code where it serves; ``unpack_bank`` and the checks say what is wrong.
    """
    if not torch.compiler.is_compiling() and ops.info_nce.fits(side):
        return side
    return side if _fits(side) else None


def _fits(side: tuple[Any, ...]) -> bool:
    """Whether nothing about the tensors of a side has to be converted or refused, on any device."""
    query, positive, rows, row_scale, bank_ids, ids, _ = side
    if not (isinstance(query, Tensor) and isinstance(positive, Tensor)):
        return False
    tensors = query, positive, rows, bank_ids, ids
    if not all(is_dense(one) for one in tensors if isinstance(one, Tensor)):
        return False
    shape, device, size = query.shape, query.device, rows.shape[:1]
    if not (
        len(shape) == 2
        and positive.shape == shape
        and query.dtype in FLOATS
        and positive.dtype in FLOATS
        and positive.device == device
        and rows.ndim == 2
        and rows.shape[1] == shape[1]
        and rows.dtype in _DTYPES
        and rows.device == device
        and (row_scale is None) == (rows.dtype != torch.int8)
    ):
        return False
    for of, length in ((ids, shape[:1]), (bank_ids, size)):
        if of is not None and not (
            isinstance(of, Tensor)
            and of.dtype == torch.int64
            and of.shape == length
            and of.device == device
            and of.is_contiguous()
        ):
            return False
    return row_scale is None or (
        row_scale.dtype == torch.float32
        and row_scale.shape == size
        and row_scale.device == device
        and row_scale.is_contiguous()
    )


def unpack_bank(
    name: str, query: Tensor, bank: Tensor | MemoryBank | BankView, bank_ids: Tensor | None
) -> Bank:
    """Rows, scales and ids of ``bank``, checked against the query.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    if isinstance(bank, MemoryBank | BankView):
        if bank_ids is not None:
            raise ValueError(
                f"{name}: bank_ids came with a MemoryBank, which brings its own ids; leave "
                "bank_ids out and pass ids to enqueue."
            )
        view = bank.view() if isinstance(bank, MemoryBank) else bank
        tensors = Bank(view.rows, view.row_scale, view.ids)
    else:
        if not isinstance(bank, Tensor):
            raise TypeError(
                f"{name}: bank must be a (K, D) tensor or a MemoryBank, got {type(bank).__name__}."
            )
        check_dense(name, "bank", bank)
        if bank.dtype == torch.int8:
            raise TypeError(
                f"{name}: an int8 bank needs its row scales; use MemoryBank(dtype=torch.int8)."
            )
        tensors = Bank(bank.detach(), None, bank_ids)
    rows = tensors.rows
    if rows.ndim != 2 or rows.shape[1] != query.shape[1]:
        hint = " (is it (D, K)? pass bank.T)" if rows.shape[:1] == query.shape[1:] else ""
        raise ValueError(
            f"{name}: bank must be (K, {query.shape[1]}) to match query, "
            f"got {shape_of(rows)}{hint}."
        )
    if rows.dtype not in (*FLOATS, torch.int8):
        raise TypeError(
            f"{name}: bank must be float32, bfloat16, float16, float64 or int8, got {rows.dtype}."
        )
    check_same_device(name, query, bank=rows, bank_ids=tensors.ids, row_scale=tensors.row_scale)
    row_scale = _checked_scale(name, rows, tensors.row_scale)
    ids = check_ids(name, "bank_ids", tensors.ids, rows.shape[0])
    return Bank(rows, row_scale, ids)


def shard_of(bank: Tensor | MemoryBank | BankView | None) -> Shard | None:
    """Which part of the bank is here, where several ranks hold it."""
    return _told_apart(bank.shard) if isinstance(bank, MemoryBank | BankView) else None


def _told_apart(shard: Shard | None) -> Shard | None:
    """None for a part that stands alone with the numbers of its own rows: an ordinary bank."""
    return None if shard is None or not (shard.group or shard.offset) else shard


def training_shard(bank: Tensor | MemoryBank | BankView | None) -> Shard | None:
    """``shard_of`` a loss: without a gradient it is validation, perhaps on one rank only."""
    shard = shard_of(bank)
    if shard is None or torch.is_grad_enabled():
        return shard
    return _told_apart(shard._replace(group=""))


def _checked_scale(name: str, rows: Tensor, scale: Tensor | None) -> Tensor | None:
    """The scales, dense: an int8 bank, and no other, has a float32 scale for each row."""
    if scale is None and rows.dtype != torch.int8:
        return None
    if scale is None or rows.dtype != torch.int8:
        raise ValueError(
            f"{name}: an int8 bank, and no other, has row scales; got {rows.dtype} rows "
            f"{'without' if scale is None else 'with'} them."
        )
    if scale.dtype != torch.float32 or scale.shape != rows.shape[:1]:
        raise ValueError(
            f"{name}: row_scale of the bank must be ({rows.shape[0]},) float32, "
            f"got {shape_of(scale)} {scale.dtype}."
        )
    return scale.contiguous()
