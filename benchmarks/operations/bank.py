"""Losses and searches against a bank of K rows: weighted InfoNCE, hardest negatives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import MemoryBank, hardest_negatives, weighted_info_nce

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of, with_gradient
from ..ours import absent_backend, backend_variants
from ..peers import bank as plain
from ..peers import packages
from .exact import Exact, exact_loss

TEMPERATURE = 0.07
#: Elements of one block of similarities in the yardstick.
_BLOCK = 1 << 25


@dataclass(frozen=True)
class LossOptions:
    """Which member of the weighted family.

    Attributes:
        hardness: beta in cosine units.
        detach: whether the weights are constants.
        masked: whether ids mask false negatives.
        columns: whether the bank lies as (D, K), as the queues of MoCo and ALBEF do.
    """

    hardness: float = 0.0
    detach: bool = True
    masked: bool = False
    columns: bool = False


def unit_rows(rows: int, dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(rows, dim) random directions, fp32."""
    drawn = torch.randn(rows, dim, **of(generator))
    return F.normalize(drawn, dim=1, out=drawn).to(device)


def draw_bank(case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
    """Queries, positives near them, and a bank; ids such that each query has two in the bank."""
    query = unit_rows(case.B, case.D, generator, device)
    # cos(query, positive) = 0.7: the loss is then of order 1, not lost in its own rounding.
    near = query + unit_rows(case.B, case.D, generator, device)
    rows, row_scale = unit_rows(case.K, case.D, generator, device), None
    if case.dtype == "int8":
        bank = MemoryBank(case.K, case.D, dtype=torch.int8, normalize=False, device=device)
        bank.enqueue(rows, backend="torch")
        rows, row_scale = bank.rows, bank.row_scale
    else:
        bank, rows = None, rows.to(case.torch_dtype)
    return {
        "query": query.to(case.query_dtype).requires_grad_(case.backward),
        "positive": F.normalize(near, dim=1).to(case.query_dtype),
        "rows": rows,
        "row_scale": row_scale,
        "bank": bank,
        "query_ids": torch.arange(case.B, device=device),
        "bank_ids": torch.arange(case.K, device=device).flip(0) % max(1, case.K // 2),
    }


def dense(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """The bank as floating rows."""
    rows: Tensor = inputs["rows"].to(dtype)
    scale = inputs["row_scale"]
    return rows if scale is None else rows * scale.to(dtype).unsqueeze(1)


def loss_in_row_blocks(
    case: Case,
    inputs: Inputs,
    block_loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    elements: int,
) -> Outputs:
    """Mean loss and query gradient, a few query rows at a time (rows are independent).

    ``block_loss(query, positive, query_ids)`` returns the row losses of a block.
    """
    query = inputs["query"].detach()
    step = max(1, elements // case.K)
    losses, grads = [], []
    for start in range(0, case.B, step):
        part = slice(start, start + step)
        q = query[part].clone().requires_grad_(case.backward)
        rows = block_loss(q, inputs["positive"][part], inputs["query_ids"][part])
        losses.append(rows.detach())
        if case.backward:
            grads.append(torch.autograd.grad(rows.sum() / case.B, q)[0])
    outputs = {"loss": torch.cat(losses).mean()}
    return outputs | ({"grad_query": torch.cat(grads)} if case.backward else {})


class BankLoss(Operation):
    """Weighted InfoNCE against a bank; options tell which."""

    def __init__(self, options: LossOptions) -> None:
        self.options = options

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """See ``draw_bank``."""
        inputs = draw_bank(case, device, generator)
        if self.options.columns:
            inputs["rows"] = inputs["rows"].T.contiguous().T
        return inputs

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The closed form in fp64."""
        return self.truth_of(case, inputs, inputs["rows"], inputs["bank_ids"], self.options.masked)

    def truth_of(
        self,
        case: Case,
        inputs: Inputs,
        rows: Tensor,
        bank_ids: Tensor,
        masked: bool,
        normalizes: bool = False,
    ) -> Outputs:
        """The closed form in fp64 for a bank of one's own; ``normalizes`` as in ``Exact``."""
        o = self.options
        loss, grad = exact_loss(
            inputs["query"].detach().double(),
            inputs["positive"].double(),
            rows,
            inputs["row_scale"],
            (inputs["query_ids"], bank_ids) if masked else None,
            Exact(TEMPERATURE, o.hardness, o.detach, normalizes),
        )
        return {"loss": loss} | ({"grad_query": grad} if case.backward else {})

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """Eager PyTorch in row blocks, so that it fits at any size."""
        bank = dense(inputs, case.query_dtype)

        def rows(query: Tensor, positive: Tensor, ids: Tensor) -> Tensor:
            same = ids.unsqueeze(1) == inputs["bank_ids"] if self.options.masked else None
            return plain.eager_rows(query, positive, bank, same, self.options)

        return loss_in_row_blocks(case, inputs, rows, _BLOCK)

    def work(self, case: Case) -> Work:
        """2BKD for the similarities and 2BKD more for each accumulator of the gradient."""
        factor = 2.0
        if case.backward:
            factor = 4.0 if self.options.detach else 6.0
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        moved = case.K * (case.D * width + (4 if case.dtype == "int8" else 0))
        return Work(
            f"{factor:.0f} B K D",
            factor * case.B * case.K * case.D,
            "bank once" + (" and its ids" if self.options.masked else ""),
            moved + (8 * case.K if self.options.masked else 0),
        )

    def _ours(
        self, backend: str, case: Case, sets: list[Inputs], *, unit_length: bool = True
    ) -> Run:
        options = self.options

        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]

            def compute() -> Tensor:
                loss = weighted_info_nce(
                    i["query"],
                    i["positive"],
                    i["rows"] if i["bank"] is None else i["bank"],
                    temperature=TEMPERATURE,
                    hardness=options.hardness,
                    detach_weights=options.detach,
                    unit_length=unit_length,
                    query_ids=i["query_ids"] if options.masked else None,
                    bank_ids=i["bank_ids"] if options.masked else None,
                    backend=backend,
                )
                return loss if isinstance(loss, Tensor) else loss[0]

            return with_gradient(case, compute, {"grad_query": i["query"]}, "loss")

        return run

    def _rows(self, case: Case, sets: list[Inputs]) -> Run:
        """Ours on the same bank lying as (K, D)."""
        return self._ours("cpu", case, [i | {"rows": i["rows"].contiguous()} for i in sets])

    def variants(self, case: Case) -> list[Variant]:
        """Ours, then plain PyTorch, then packages that have this very loss."""

        def online(case: Case, sets: list[Inputs]) -> Run:
            return self._ours("triton", case, sets, unit_length=False)

        found = [
            *backend_variants(self._ours),
            Variant("sede triton online", "ours", online, absent_backend("triton")),
            *plain.variants(self.options),
        ]
        if self.options.columns:  # PyTorch's CPU attention reads wrong values of such rows
            fused = ("attention V=K", "linear_cross_entropy")
            found = [variant for variant in found if variant.name not in fused]
            found.append(Variant("sede cpu, rows", "twin", self._rows, absent_backend("cpu")))
        if self.options == LossOptions():
            found += packages.variants(self.truth_of)
        return found


class Hardest(Operation):
    """The hardest negatives of each query: one, or ``k`` where the case has that size."""

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """See ``draw_bank``."""
        return draw_bank(case, device, generator)

    def _values(self, query: Tensor, bank: Tensor, k: int) -> Outputs:
        step = max(1, _BLOCK // bank.shape[0])
        parts = [(q @ bank.T).topk(k, dim=1).values for q in query.split(step)]
        return {"values": torch.cat(parts)}

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """Largest similarities in fp64."""
        bank = dense(inputs, torch.float64)
        return self._values(inputs["query"].double(), bank, plain.wanted(case))

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """The same in the queries' dtype."""
        return self._values(inputs["query"], dense(inputs, case.query_dtype), plain.wanted(case))

    def work(self, case: Case) -> Work:
        """One product with the bank."""
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        flops = 2.0 * case.B * case.K * case.D
        return Work("2 B K D", flops, "bank once", float(case.K * case.D * width))

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]
            bank = i["rows"] if i["bank"] is None else i["bank"]
            values, _ = hardest_negatives(i["query"], bank, plain.wanted(case), backend=backend)
            return {"values": values}

        return run

    def variants(self, case: Case) -> list[Variant]:
        """Ours, eager, and eager in blocks of the bank."""
        return backend_variants(self._ours) + plain.hardest_variants()
