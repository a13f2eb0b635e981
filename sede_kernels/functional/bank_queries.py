"""Log-sum-exps and hardest negatives of queries against a bank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sede_kernels import ops, reference
from sede_kernels.backends.registry import serves_natively
from sede_kernels.bank import BankView, MemoryBank
from sede_kernels.checks import (
    MOST,
    check_backend,
    check_count,
    check_float_matrix,
    check_ids,
    check_number,
    check_same_device,
    readable,
    shape_of,
)
from sede_kernels.dense import check_dense
from sede_kernels.functional._bank_argument import (
    bank_as_it_came,
    seen_to_fit,
    shard_of,
    side_as_it_came,
    unpack_bank,
)
from sede_kernels.functional._rows import rows_of
from sede_kernels.types import Match, Want, result_dtype

MAX_SCALES = 3


def _scales_tensor(name: str, scales: float | Sequence[float] | Tensor, query: Tensor) -> Tensor:
    """(E,) on the query's device in the dtype of the results; values checked where free."""
    dtype = result_dtype(query)
    if isinstance(scales, Tensor):
        check_dense(name, "scales", scales)
        if scales.ndim > 1 or scales.dtype not in (torch.float32, torch.float64, query.dtype):
            raise ValueError(
                f"{name}: scales must be a number, a sequence or a floating (E,) tensor, "
                f"got {shape_of(scales)} {scales.dtype}."
            )
        check_same_device(name, query, scales=scales)
        values = scales.reshape(-1).to(dtype)
        if readable(scales):
            for value in scales.detach().reshape(-1).tolist():
                check_number(name, "scales", value, low=0.0)
    else:
        numbers = scales if isinstance(scales, Sequence) else [scales]
        checked = [check_number(name, "scales", x, low=0.0) for x in numbers]
        _check_number_of_scales(name, len(checked))
        return _beside(query, checked)
    _check_number_of_scales(name, values.shape[0])
    return values


def _beside(query: Tensor, values: list[float]) -> Tensor:
    """[E] on the device of the query; numbers are filled in, never copied from the host."""
    dtype = result_dtype(query)
    if torch.compiler.is_compiling():
        # A compiled function keeps a number that changes as an input only through arithmetic.
        return torch.cat([query.new_ones((1,), dtype=dtype) * value for value in values])
    if query.device.type == "cpu":
        return torch.tensor(values, dtype=dtype, device="cpu")
    return torch.cat([query.new_full((1,), value, dtype=dtype) for value in values])


def _check_number_of_scales(name: str, number: int) -> None:
    if not 1 <= number <= MAX_SCALES:
        raise ValueError(
            f"{name}: scales must hold 1 to {MAX_SCALES} exponents, got {number}; call again for "
            "more."
        )


def bank_lse(
    query: Tensor,
    bank: Tensor | MemoryBank | BankView,
    scales: float | Sequence[float] | Tensor,
    *,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Log-sum-exp of scaled similarities over the bank, in one pass.

    ``out[i, e] = log sum_{j in V_i} exp(scales[e] * q_i.m_j)`` with V_i the filled slots whose id
    differs from the query's.

    Args:
        query: (B, D) float32, bfloat16, float16 or float64; need not be unit length.
        bank: (K, D) tensor of any strides or a ``MemoryBank``; never gets a gradient.
        scales: up to 3 exponents >= 0 (1 / temperature, say): a number, a sequence, or an (E,)
            tensor, which may require a gradient.
        query_ids: (B,) integers >= 0; None masks nothing but empty slots.
        bank_ids: (K,) integers, -1 for an empty slot; a ``MemoryBank`` brings its own.
        backend: ``auto``, ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.

    Returns:
        (B, E) float32 (float64 for float64 queries), or (B,) for a scalar ``scales``. -inf where
        V_i is empty, with a zero gradient.

    Raises:
        ValueError, TypeError: shapes, dtypes or values out of range.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        2BKD FLOPs and one read of the bank without a gradient; with one, 2BKD more for each two
        exponents, done in the forward; extra memory O(E B D).

    Gradients:
        query: scales[e] * sum_j P_ij m_j; scales: sum_j P_ij s_ij.

    Source:
        The log-sum-exp that attention kernels return, as a loss building block; docs/method.md.

    Example:
        >>> query, bank = torch.eye(2), torch.eye(2)
        >>> bank_lse(query, bank, 1.0).round(decimals=4)
        tensor([1.3133, 1.3133])
    """
    name = "bank_lse"
    check_float_matrix(name, "query", query)
    chosen = check_backend(name, backend, query, scales)
    tensors, shard = unpack_bank(name, query, bank, bank_ids), shard_of(bank)
    if shard is not None and chosen == "reference":
        tensors = ops.sharded.whole_bank(tensors, shard)
    ids = check_ids(name, "query_ids", query_ids, query.shape[0])
    check_same_device(name, query, query_ids=ids)
    values = _scales_tensor(name, scales, query)
    scalar = not isinstance(scales, Sequence) and (
        not isinstance(scales, Tensor) or scales.ndim == 0
    )
    if chosen == "reference":
        wide = query.to(result_dtype(query))
        out = reference.bank_lse(wide, tensors.dense(wide.dtype), values, ids, tensors.ids)
        return out[:, 0] if scalar else out
    rows = rows_of(query, result_dtype(query))
    needs_query = torch.is_grad_enabled() and query.requires_grad
    needs_scales = torch.is_grad_enabled() and values.requires_grad
    # Kernels keep at most two accumulators a pass.
    step = 2 if needs_query else MAX_SCALES
    parts = []
    for start in range(0, values.shape[0], step):
        part = values[start : start + step].contiguous()
        want = Want(tuple(range(part.shape[0])) if needs_query else (), moments=needs_scales)
        fixed = part.detach().clone()
        if shard is not None:
            found = ops.sharded.sharded_lse(
                rows.operand, tensors, part, fixed, Match(ids), want, rows.carrier, shard, chosen
            )
        else:
            found = ops.bank_lse.bank_lse(
                rows.operand, tensors, part, fixed, Match(ids), want, rows.carrier, chosen
            )
        parts.append(found.lse)
    out = torch.cat(parts).T
    return out[:, 0] if scalar else out


def hardest_negatives(
    query: Tensor,
    bank: Tensor | MemoryBank | BankView,
    k: int = 1,
    *,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k most similar valid bank rows of each query.

    Args:
        query: (B, D) float32, bfloat16, float16 or float64.
        bank: (K, D) tensor or a ``MemoryBank``.
        k: how many, >= 1; more than K is filled up with (-inf, -1).
        query_ids: (B,) integers >= 0; rows of the same id are not negatives.
        bank_ids: (K,) integers, -1 for an empty slot.
        backend: see ``bank_lse``.

    Returns:
        values (B, k) float32 (float64 for float64 queries), descending, and indices (B, k) int64
        into the bank; ties go to the lowest index; (-inf, -1) where fewer than k are valid. A
        similarity that is NaN never ranks.

    Raises:
        ValueError, TypeError: shapes, dtypes or k out of range.
        BackendUnavailableError: an explicit backend cannot serve the call.
        NotImplementedError: a second or forward-mode derivative, or torch.func, of a kernel.

    Cost:
        2BKD FLOPs, one read of the bank, extra memory O(B k).

    Gradients:
        query, through ``values``: the selected rows. The indices and the bank get none.

    Source:
        Hardest negatives of VSE++ (Faghri et al. 2018), searched in a memory bank.

    Example:
        >>> values, indices = hardest_negatives(torch.eye(2), torch.eye(2), k=1)
        >>> indices.flatten().tolist()
        [0, 1]
    """
    name = "hardest_negatives"
    if type(k) is int and k <= MOST and serves_natively(backend):
        known = bank_as_it_came(bank, bank_ids)
        at_once = None if known is None else ops.hardest.at_once(query, known, query_ids, k)
        if at_once is not None:
            return at_once.values, at_once.indices
    k = check_count(name, "k", k, least=1)
    side = side_as_it_came(query, query, bank, query_ids, bank_ids)
    if side is None or seen_to_fit(side) is None:
        check_float_matrix(name, "query", query)
        tensors = unpack_bank(name, query, bank, bank_ids)
        ids = check_ids(name, "query_ids", query_ids, query.shape[0])
        check_same_device(name, query, query_ids=ids)
    else:
        tensors, ids = side.bank, side.ids
    chosen, shard = check_backend(name, backend, query), shard_of(bank)
    if shard is not None and chosen == "reference":
        tensors = ops.sharded.whole_bank(tensors, shard)
    if chosen == "reference":
        wide = query.to(result_dtype(query))
        return reference.hardest_negatives(wide, tensors.dense(wide.dtype), k, ids, tensors.ids)
    if shard is not None:
        wanted = torch.is_grad_enabled() and query.requires_grad
        ranked = ops.sharded.sharded_hardest(query, tensors, ids, k, wanted, shard, chosen)
        return ranked.values, ranked.indices
    found = ops.hardest.hardest(query, tensors, ids, k, chosen)
    return found.values, found.indices
