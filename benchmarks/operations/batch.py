"""InfoNCE within the batch (K = B): the other rows' keys are the negatives."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import reference, weighted_info_nce

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, with_gradient
from ..ours import backend_variants
from ..peers.bank import no_compiler
from ..peers.packages import memeff_loss, needs
from .bank import TEMPERATURE, unit_rows

_Loss = Callable[[Tensor, Tensor], Tensor]


class BatchLoss(Operation):
    """Mean over rows of -log softmax_j(q_i.k_j / tau)_i, gradients of both sides."""

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Unit queries and keys near them."""
        query = unit_rows(case.B, case.D, generator, device)
        key = F.normalize(query + 2 * unit_rows(case.B, case.D, generator, device), dim=1)
        dtype = case.query_dtype
        return {
            "query": query.to(dtype).requires_grad_(case.backward),
            "key": key.to(dtype).requires_grad_(case.backward),
        }

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The reference in fp64."""
        exact = {k: v.detach().double().requires_grad_(case.backward) for k, v in inputs.items()}

        def compute() -> Tensor:
            return reference.weighted_info_nce(
                exact["query"],
                exact["key"],
                exact["query"].detach()[:0],
                temperature=TEMPERATURE,
                in_batch_negatives=True,
            )

        wanted = {"grad_query": exact["query"], "grad_key": exact["key"]}
        return with_gradient(case, compute, wanted, "loss")

    def _eager(self, case: Case, inputs: Inputs, call: _Loss) -> Outputs:
        query, key = inputs["query"], inputs["key"]
        wanted = {"grad_query": query, "grad_key": key}
        return with_gradient(case, lambda: call(query, key), wanted, "loss")

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """Eager PyTorch."""
        return self._eager(case, inputs, _cross_entropy)

    def work(self, case: Case) -> Work:
        """Logits, and with gradients one product for each side."""
        factor = 6.0 if case.backward else 2.0
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        moved = (4.0 if case.backward else 2.0) * case.B * case.D * width
        return Work(
            f"{factor:.0f} B B D", factor * case.B**2 * case.D, "both sides and gradients", moved
        )

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]

            def compute() -> Tensor:
                loss = weighted_info_nce(
                    i["query"],
                    i["key"],
                    None,
                    temperature=TEMPERATURE,
                    in_batch_negatives=True,
                    backend=backend,
                )
                return loss if isinstance(loss, Tensor) else loss[0]

            wanted = {"grad_query": i["query"], "grad_key": i["key"]}
            return with_gradient(case, compute, wanted, "loss")

        return run

    def _plain(self, compiled: bool) -> Callable[[Case, list[Inputs]], Run]:
        def build(case: Case, sets: list[Inputs]) -> Run:
            function = torch.compile(_cross_entropy, dynamic=False) if compiled else _cross_entropy
            return lambda turn: self._eager(case, sets[turn % len(sets)], function)

        return build

    def variants(self, case: Case) -> list[Variant]:
        """Ours, eager, compiled, and the two packages for K = B."""
        return [
            *backend_variants(self._ours),
            Variant("eager", "eager", self._plain(False)),
            Variant("torch.compile", "peer", self._plain(True), no_compiler),
            Variant("memeff", "peer", _memeff, needs("memeff", True)),
            Variant("inf-cl", "peer", _inf_cl, needs("inf-cl", True, only="fp32")),
        ]


def _cross_entropy(query: Tensor, key: Tensor) -> Tensor:
    logits = (query @ key.T).float() / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(query.shape[0], device=query.device))


def _memeff(case: Case, sets: list[Inputs]) -> Run:
    loss = memeff_loss()

    def run(turn: int) -> Outputs:
        i = sets[turn % len(sets)]
        # Its one-sided loss locks the keys: it answers for the query gradient alone.
        return with_gradient(
            case, lambda: loss(i["query"], i["key"]), {"grad_query": i["query"]}, "loss"
        )

    return run


def _inf_cl(case: Case, sets: list[Inputs]) -> Run:
    from inf_cl import cal_flash_loss

    head = 256 if case.D % 256 == 0 else case.D

    def run(turn: int) -> Outputs:
        i = sets[turn % len(sets)]

        def compute() -> Tensor:
            rows = cal_flash_loss(i["query"], i["key"], scale=1 / TEMPERATURE, head_dim=head)
            mean: Tensor = rows.mean()
            return mean

        wanted = {"grad_query": i["query"], "grad_key": i["key"]}
        return with_gradient(case, compute, wanted, "loss")

    return run
