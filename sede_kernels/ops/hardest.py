"""Top-k valid bank rows by similarity. The gradient of a value is its bank row."""

import torch
from torch import Tensor
from torch.nn import Parameter

from sede_kernels.backends.registry import native_look
from sede_kernels.ops._op import Saved, op
from sede_kernels.ops.transforms import nothing_looks_on
from sede_kernels.types import Bank, Ranked


@op(decides=("query", "bank_rows"), differentiable=("values",))
def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int, backend: str) -> Ranked:
    """The k most similar rows of the bank for query (B, D)."""
    return Ranked.empty(query, k)


def _gathered(grad_values: Tensor, bank: Bank, indices: Tensor) -> Tensor:
    weight = grad_values.masked_fill(indices < 0, 0.0)
    safe = indices.clamp(min=0)
    if bank.row_scale is not None and bank.rows.shape[0]:
        weight = weight * bank.row_scale[safe]
    total = grad_values.new_zeros((grad_values.shape[0], bank.rows.shape[1]))
    if bank.rows.shape[0]:
        for rank in range(grad_values.shape[1]):
            rows = bank.rows[safe[:, rank]].to(total.dtype)
            rows = rows.masked_fill((indices[:, rank] < 0).unsqueeze(1), 0.0)
            total.addcmul_(rows, weight[:, rank].unsqueeze(1))
    return total


@op(run=_gathered)
def hardest_backward(grad_values: Tensor, bank: Bank, indices: Tensor) -> Tensor:
    """dq_i = sum_n grad_values[i, n] m_{indices[i, n]}, one [B, D] gather a rank."""
    return grad_values.new_empty((grad_values.shape[0], bank.rows.shape[1]))


# Linear in the query: only the incoming gradient has a derivative of its own.
@hardest.gradients(saves=("bank_rows", "bank_row_scale", "indices"), depends=())
def _(saved: Saved, grad: Ranked) -> dict[str, Tensor | None]:
    if "query" not in saved.needs:
        return {}
    bank = Bank(saved["bank_rows"], saved["bank_row_scale"])
    return {"query": hardest_backward(grad.values, bank, saved["indices"])}


def at_once(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked | None:
    """The native result of arguments as they came, or None: what they need is more than one look.

    Native code looks at classes, dtypes, shapes and addresses; a tensor that wants a gradient, a
    compiler, a mode, a transform or a profiler is for the op.
    """
    if type(query) not in (Tensor, Parameter) or not nothing_looks_on():
        return None
    if query.requires_grad and torch.is_grad_enabled():
        return None
    look = native_look("hardest", "hardest_at_once")
    found: Ranked | None = None if look is None else look(query, bank, query_ids, k)
    return found
