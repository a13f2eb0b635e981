"""The ``bank`` argument of the functions: a dense tensor or a MemoryBank, unpacked and checked."""

import torch
from torch import Tensor

from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import FLOATS, check_dense, check_ids, check_same_device, shape_of
from sede_kernels.types import Bank, Shard


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
    _check_scale(name, rows, tensors.row_scale)
    ids = check_ids(name, "bank_ids", tensors.ids, rows.shape[0])
    return Bank(rows, tensors.row_scale, ids)


def shard_of(bank: Tensor | MemoryBank | BankView | None) -> Shard | None:
    """Which part of the bank is here, where several ranks hold it."""
    return bank.shard if isinstance(bank, MemoryBank | BankView) else None


def training_shard(bank: Tensor | MemoryBank | BankView | None) -> Shard | None:
    """``shard_of`` a loss: without a gradient it is validation, perhaps on one rank only."""
    shard = shard_of(bank)
    if shard is None or torch.is_grad_enabled():
        return shard
    return shard._replace(group="")


def _check_scale(name: str, rows: Tensor, scale: Tensor | None) -> None:
    """An int8 bank, and no other, has a float32 scale for each row."""
    if scale is None and rows.dtype != torch.int8:
        return
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
