"""Region-word similarity of all image-caption pairs: SCAN and BFAN, both directions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import cross_attention_similarity

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of, with_gradient
from ..ours import backend_variants
from ..peers import fragments
from ..peers.bank import no_compiler

_Similarity = Callable[[Tensor, Tensor, Tensor], Tensor]
_FEWEST_WORDS = 5
# Attention this close to its mean (relative) may be erased in fp32 and kept in fp64.
_UNDECIDED = 2e-4


@dataclass(frozen=True)
class ScanOptions:
    """Settings of a published model.

    Attributes:
        direction: ``t2i`` or ``i2t``.
        smoothing: lambda.
        aggregate: ``lse`` or ``mean``.
        scale: lambda_lse.
        erase: BFAN's erasing.
    """

    direction: str
    smoothing: float
    aggregate: str
    scale: float
    erase: bool


MODELS = {
    "scan_t2i": ScanOptions("t2i", 9.0, "lse", 6.0, False),
    "scan_i2t": ScanOptions("i2t", 4.0, "lse", 5.0, False),
    "bfan_t2i": ScanOptions("t2i", 20.0, "mean", 1.0, True),
    "bfan_i2t": ScanOptions("i2t", 20.0, "mean", 1.0, True),
}


class Scan(Operation):
    """(B images of R regions, C captions of up to L words) -> (B, C)."""

    def __init__(self, options: ScanOptions) -> None:
        self.options = options

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Unit fragments around a shared direction, captions of 5 to L words."""
        centre = torch.randn(case.D, **of(generator)) * 0.3

        def sets(count: int, length: int) -> Tensor:
            drawn = torch.randn(count, length, case.D, **of(generator)) + centre
            return F.normalize(drawn, dim=2).to(case.torch_dtype).to(device)

        regions, words = sets(case.B, case.R), sets(case.C, case.L)
        least = min(_FEWEST_WORDS, case.L)
        lengths = torch.randint(least, case.L + 1, (case.C,), **of(generator)).to(device)
        weight = torch.rand(case.B, case.C, **of(generator)).add_(0.5).to(device)
        if self.options.erase:
            weight = weight * self._decided(regions, words, lengths)
        return {
            "regions": regions.requires_grad_(case.backward),
            "words": words.requires_grad_(case.backward),
            "lengths": lengths,
            "weight": weight,
        }

    def _decided(self, regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """(B, C) pairs in which no attention lies on the erasing threshold within rounding."""
        o = self.options
        valid = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
        columns = []
        for part, real in zip(words.split(16), valid.split(16), strict=True):
            s = torch.einsum("brd,cld->bcrl", regions.float(), part.float())
            a = fragments.pair_attention(
                s, real, direction=o.direction, smoothing=o.smoothing, erase=False
            )
            counts = real.sum(dim=1).view(1, -1, 1, 1)
            axis, count = (2, s.shape[2]) if o.direction == "t2i" else (3, counts)
            mean = a.sum(dim=axis, keepdim=True) / count
            clear = ((a - mean).abs() > _UNDECIDED * mean) | ~real[None, :, None, :]
            columns.append(clear.all(dim=3).all(dim=2))
        return torch.cat(columns, dim=1)

    def _outputs(self, case: Case, similarity: _Similarity, i: Inputs) -> Outputs:
        wanted = {"grad_regions": i["regions"], "grad_words": i["words"]}
        return with_gradient(
            case,
            lambda: similarity(i["regions"], i["words"], i["lengths"]) * i["weight"],
            wanted,
            "similarity",
        )

    def _library(self, backend: str) -> _Similarity:
        o = self.options

        def similarity(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
            return cross_attention_similarity(
                regions,
                words,
                word_lengths=lengths,
                direction=o.direction,
                smoothing=o.smoothing,
                aggregate=o.aggregate,
                aggregate_scale=o.scale,
                erase="mean" if o.erase else None,
                backend=backend,
            )

        return similarity

    def _plain(self, function: Callable[..., Tensor]) -> _Similarity:
        o = self.options

        def similarity(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
            return function(
                regions,
                words,
                lengths,
                direction=o.direction,
                smoothing=o.smoothing,
                aggregate=o.aggregate,
                scale=o.scale,
                erase=o.erase,
            )

        return similarity

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The blocked PyTorch form in fp64, which the tests hold to the reference at 1e-10.

        The reference itself takes minutes here; the caption loop, written from SCAN's formula,
        is an independent check of the same numbers.
        """
        exact = dict(inputs)
        for name in ("regions", "words"):
            exact[name] = inputs[name].detach().double().requires_grad_(case.backward)
        exact["weight"] = inputs["weight"].double()
        return self._outputs(case, self._library("torch"), exact)

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """All pairs at once in plain PyTorch."""
        return self._outputs(case, self._plain(fragments.all_pairs), inputs)

    def work(self, case: Case) -> Work:
        """S, the Gram matrices and a^T G a; three times that with gradients (S comes again)."""
        mean_words = (min(_FEWEST_WORDS, case.L) + case.L) / 2
        sources, queries = case.R, mean_words
        sets, pairs = case.B, case.B * case.C
        if self.options.direction == "i2t":
            sources, queries, sets = mean_words, case.R, case.C  # type: ignore[assignment]
        factor = 3 if case.backward else 1
        one = (
            2 * pairs * case.R * mean_words * case.D
            + 2 * sets * sources**2 * case.D
            + 2 * pairs * queries * sources**2
        )
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        moved = width * case.D * (case.B * case.R + case.C * mean_words) * (1 + case.backward)
        return Work(
            f"{factor} (2 B R C W D + 2 n S^2 D + 2 B C Q S^2), W mean words",
            float(factor * one),
            "fragments and gradients once",
            float(moved),
        )

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        similarity = self._library(backend)
        return lambda turn: self._outputs(case, similarity, sets[turn % len(sets)])

    def _peer(
        self, function: Callable[..., Tensor], compiled: bool = False
    ) -> Callable[[Case, list[Inputs]], Run]:
        def build(case: Case, sets: list[Inputs]) -> Run:
            plain = self._plain(function)
            call = torch.compile(plain, dynamic=False) if compiled else plain
            return lambda turn: self._outputs(case, call, sets[turn % len(sets)])

        return build

    def variants(self, case: Case) -> list[Variant]:
        """Ours, all pairs at once (eager and compiled), the published loop."""
        return [
            *backend_variants(self._ours),
            Variant("eager", "eager", self._peer(fragments.all_pairs)),
            Variant("torch.compile", "peer", self._peer(fragments.all_pairs, True), no_compiler),
            Variant("caption loop", "peer", self._peer(fragments.caption_loop)),
        ]
