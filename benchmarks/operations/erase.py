"""Attention-guided erasing of rows of L fragments, by each rule."""

from collections.abc import Callable

import torch
from torch import Tensor

from sede_kernels import attention_erase, reference_erase

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of
from ..ours import backend_variants
from ..peers.bank import no_compiler

#: Rule -> threshold as a function of L.
RULES = {
    "mean": lambda length: None,
    "prob": lambda length: None,
    "absolute": lambda length: 1.0 / length,
    "relative": lambda length: 0.3,
    "topk": lambda length: max(1, length // 4),
    "quantile": lambda length: 0.5,
}
_Eraser = Callable[[Tensor], tuple[Tensor, Tensor]]
# Closer to the cut than this (relative), fp32 and fp64 may rightly decide differently.
_UNDECIDED = 1e-5


def cut(a: Tensor, rule: str, threshold: float | None) -> Tensor:
    """(N, 1) the value that separates attended fragments from the others."""
    if rule == "mean":
        return a.mean(dim=-1, keepdim=True)
    if rule == "prob":
        root = a.sqrt()
        return (a * root).sum(dim=-1, keepdim=True) / root.sum(dim=-1, keepdim=True)
    if rule == "absolute":
        return a.new_full((a.shape[0], 1), float(threshold or 0))
    if rule == "relative":
        return a.amax(dim=-1, keepdim=True) * float(threshold or 0)
    if rule == "topk":
        ordered = a.sort(dim=-1, descending=True).values
        k = int(threshold or 1)
        return (ordered[:, k - 1 : k] + ordered[:, k : k + 1]) / 2
    return a.quantile(float(threshold or 0), dim=-1, keepdim=True)


def decided(a: Tensor, rule: str, threshold: float | None) -> Tensor:
    """(N,) rows in which no fragment lies on the cut within rounding."""
    # torch's quantile takes at most 16 M elements; blocks also bound the fp64 copies.
    parts = []
    for block in a.split(max(1, (1 << 22) // a.shape[1])):
        wide = block.double()
        at = cut(wide, rule, threshold)
        parts.append(((wide - at).abs() > _UNDECIDED * at).all(dim=-1))
    return torch.cat(parts)


class Erase(Operation):
    """One rule; ``N`` rows of ``L`` fragments."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Softmax rows; rows with a fragment on the cut are replaced by others."""
        a = torch.randn(case.N, case.L, **of(generator)).mul_(1.5).softmax(dim=1)
        good = decided(a, self.rule, RULES[self.rule](case.L)).nonzero()[:, 0]
        a = a[good[torch.arange(case.N, device=a.device) % good.shape[0]]]
        weight = torch.randn(case.N, case.L, **of(generator))
        return {
            "attention": a.to(case.torch_dtype).to(device).requires_grad_(case.backward),
            "weight": weight.to(case.torch_dtype).to(device),
        }

    def _run(self, case: Case, erase: _Eraser, i: Inputs) -> Outputs:
        a = i["attention"]
        if not case.backward:
            with torch.no_grad():
                out, mask = erase(a)
            return {"out": out, "mask": mask}
        out, mask = erase(a)
        (grad,) = torch.autograd.grad(out, a, i["weight"])
        return {"out": out.detach(), "mask": mask, "grad": grad}

    def _reference(self, a: Tensor) -> tuple[Tensor, Tensor]:
        threshold = RULES[self.rule](a.shape[-1])
        return reference_erase.attention_erase(a, rule=self.rule, threshold=float(threshold or 0))

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The reference in fp64, in row blocks."""
        step = max(1, (1 << 22) // case.L)
        parts = []
        for start in range(0, case.N, step):
            a = inputs["attention"].detach()[start : start + step].double()
            weight = inputs["weight"][start : start + step].double()
            block = {"attention": a.requires_grad_(case.backward), "weight": weight}
            parts.append(self._run(case, self._reference, block))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """Eager."""
        return self._run(case, self._eager, inputs)

    def work(self, case: Case) -> Work:
        """Attention read and written, one byte of mask; the backward reads three and writes one."""
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        a_byte = 2 * width + 1 + ((3 * width + 1) if case.backward else 0)
        formula = "N L (2 w + 1)" + (" + N L (3 w + 1)" if case.backward else "")
        moved = float(case.N * case.L * a_byte)
        return Work("none: memory-bound", None, f"{formula}, w bytes an element", moved)

    def _eager(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The usual lines; at least the largest fragment stays."""
        threshold = RULES[self.rule](a.shape[-1])
        d = a.detach()
        if self.rule == "topk":
            mask = torch.zeros_like(d, dtype=torch.bool)
            mask.scatter_(1, d.topk(int(threshold or 1), dim=1).indices, True)
        elif self.rule == "quantile":
            ordered = d.sort(dim=1).values
            position = float(threshold or 0) * (d.shape[1] - 1)
            low = int(position)
            lower, upper = ordered[:, low], ordered[:, min(low + 1, d.shape[1] - 1)]
            mask = d >= (lower + (position - low) * (upper - lower)).unsqueeze(1)
        else:
            mask = d > cut(d, self.rule, threshold)
            mask.scatter_(1, d.argmax(dim=1, keepdim=True), True)
        kept = a * mask
        return kept / kept.sum(dim=1, keepdim=True), mask

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        threshold = RULES[self.rule](case.L)

        def erase(a: Tensor) -> tuple[Tensor, Tensor]:
            return attention_erase(a, rule=self.rule, threshold=threshold, backend=backend)

        return lambda turn: self._run(case, erase, sets[turn % len(sets)])

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
