"""The loss of a score matrix: keys of the batch and of a bank, the right ones on its diagonal."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import score_info_nce
from sede_kernels.reference_scores import score_info_nce as specification

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of, with_gradient
from ..ours import backend_variants
from ..peers.bank import no_compiler

TEMPERATURE = 0.07
#: Captions of one image.
_EACH = 5
_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class ScoreLoss(Operation):
    """Mean over B rows of N scores; keys of the query's id are no negatives.

    Args:
        hardness: beta; 0 is cross entropy.
    """

    def __init__(self, hardness: float) -> None:
        self.hardness = hardness

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Scores as cosines of fragments are, the right ones larger; ids with five keys each."""
        scores = torch.randn(case.B, case.N, **of(generator)).mul_(0.15)
        scores.diagonal().add_(0.3)
        key_ids = torch.randint(case.N // _EACH, (case.N,), **of(generator))
        return {
            "scores": scores.to(case.torch_dtype).to(device).requires_grad_(case.backward),
            "ids": key_ids[: case.B].to(device),
            "key_ids": key_ids.to(device),
        }

    def _run(self, case: Case, loss: _Loss, i: Inputs) -> Outputs:
        return with_gradient(
            case,
            lambda: loss(i["scores"], i["ids"], i["key_ids"]),
            {"grad": i["scores"]},
            "loss",
        )

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The reference in fp64."""
        scores = inputs["scores"].detach().double().requires_grad_(case.backward)

        def loss(scores: Tensor, ids: Tensor, key_ids: Tensor) -> Tensor:
            return specification(
                scores,
                query_ids=ids,
                key_ids=key_ids,
                temperature=TEMPERATURE,
                hardness=self.hardness,
            )

        return self._run(case, loss, {**inputs, "scores": scores})

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """Eager."""
        return self._run(case, self._eager, inputs)

    def work(self, case: Case) -> Work:
        """The scores are read, and for their gradient read again and written."""
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        times = 3 if case.backward else 1
        moved = float(times * case.B * case.N * width)
        return Work("none: memory-bound", None, f"{times} B N w, w bytes an element", moved)

    def _eager(self, scores: Tensor, ids: Tensor, key_ids: Tensor) -> Tensor:
        """The fewest usual lines: a mask, the weights where there are any, cross entropy."""
        same = ids.unsqueeze(1) == key_ids
        rows = torch.arange(scores.shape[0], device=scores.device)
        wide = scores.float()
        if self.hardness:
            negatives = (self.hardness * wide.detach()).masked_fill(same, -torch.inf)
            count = (~same).sum(1, keepdim=True).log()
            weights = (count + F.log_softmax(negatives, 1)).fill_diagonal_(0.0)
            return F.cross_entropy(wide / TEMPERATURE + weights, rows)
        same = same.fill_diagonal_(False)
        return F.cross_entropy((wide / TEMPERATURE).masked_fill(same, -torch.inf), rows)

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        def loss(scores: Tensor, ids: Tensor, key_ids: Tensor) -> Tensor:
            return score_info_nce(
                scores,
                query_ids=ids,
                key_ids=key_ids,
                temperature=TEMPERATURE,
                hardness=self.hardness,
                backend=backend,
            )

        return lambda turn: self._run(case, loss, sets[turn % len(sets)])

    def _plain(self, compiled: bool) -> Callable[[Case, list[Inputs]], Run]:
        def build(case: Case, sets: list[Inputs]) -> Run:
            call = torch.compile(self._eager, dynamic=False) if compiled else self._eager
            return lambda turn: self._run(case, call, sets[turn % len(sets)])

        return build

    def variants(self, case: Case) -> list[Variant]:
        """Ours, eager, compiled."""
        return [
            *backend_variants(self._ours),
            Variant("eager", "eager", self._plain(False)),
            Variant("torch.compile", "peer", self._plain(True), no_compiler),
        ]
