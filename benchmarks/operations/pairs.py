"""Region-word similarity of chosen pairs: each image with the captions it found."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import cross_attention_pairs, cross_attention_similarity

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of, with_gradient
from ..ours import absent_backend, backend_variants
from ..peers import fragments
from ..peers.bank import no_compiler

_Similarity = Callable[[Tensor, Tensor, Tensor], Tensor]
_SMOOTHING = {"t2i": 9.0, "i2t": 4.0}
_BACKENDS = ("sede cpu", "sede torch")  # no kernel on a GPU: auto is torch there


class Pairs(Operation):
    """(B images of R regions, N captions of up to L words for each) -> (B, N), SCAN's mean."""

    def __init__(self, direction: str) -> None:
        self.direction = direction

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Unit fragments, captions of 1 to L words; the images get a gradient."""

        def sets(*sizes: int) -> Tensor:
            drawn = torch.randn(*sizes, case.D, **of(generator))
            return F.normalize(drawn, dim=-1).to(case.torch_dtype).to(device)

        lengths = torch.randint(1, case.L + 1, (case.B, case.N), **of(generator)).to(device)
        return {
            "regions": sets(case.B, case.R).requires_grad_(case.backward),
            "words": sets(case.B, case.N, case.L),
            "lengths": lengths,
            "weight": torch.rand(case.B, case.N, **of(generator)).add_(0.5).to(device),
        }

    def _outputs(self, case: Case, similarity: _Similarity, i: Inputs) -> Outputs:
        return with_gradient(
            case,
            lambda: similarity(i["regions"], i["words"], i["lengths"]) * i["weight"],
            {"grad_regions": i["regions"]},
            "similarity",
        )

    def _library(self, backend: str) -> _Similarity:
        def similarity(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
            return cross_attention_pairs(
                regions.unsqueeze(1),
                words,
                word_lengths=lengths,
                direction=self.direction,
                smoothing=_SMOOTHING[self.direction],
                aggregate="mean",
                backend=backend,
            )

        return similarity

    def _plain(self, regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        way = self.direction
        return fragments.chosen_pairs(
            regions, words, lengths, direction=way, smoothing=_SMOOTHING[way]
        )

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The reference in fp64, pair by pair."""
        exact = dict(inputs)
        exact["regions"] = inputs["regions"].detach().double().requires_grad_(case.backward)
        exact["words"] = inputs["words"].detach().double()
        exact["words"].requires_grad_(inputs["words"].requires_grad)
        exact["weight"] = inputs["weight"].double()
        return self._outputs(case, self._library("reference"), exact)

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """All pairs at once in plain PyTorch."""
        return self._outputs(case, self._plain, inputs)

    def work(self, case: Case) -> Work:
        """S and the contexts; with a gradient three times that (S comes again)."""
        words, factor = (1 + case.L) / 2, 3 if case.backward else 1
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        regions = case.B * case.R * (1 + case.backward)
        return Work(
            f"{factor} 4 B N R W D, W mean words",
            float(factor * 4 * case.B * case.N * case.R * words * case.D),
            "fragments and gradients once",
            float(width * case.D * (regions + case.B * case.N * words)),
        )

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        similarity = self._library(backend)
        return lambda turn: self._outputs(case, similarity, sets[turn % len(sets)])

    def _peer(self, compiled: bool) -> Callable[[Case, list[Inputs]], Run]:
        def build(case: Case, sets: list[Inputs]) -> Run:
            call = torch.compile(self._plain, dynamic=False) if compiled else self._plain
            return lambda turn: self._outputs(case, call, sets[turn % len(sets)])

        return build

    def variants(self, case: Case) -> list[Variant]:
        """Ours, all pairs at once (eager and compiled)."""
        ours = [v for v in backend_variants(self._ours) if v.name in _BACKENDS]
        return [
            *ours,
            Variant("eager", "eager", self._peer(False)),
            Variant("torch.compile", "peer", self._peer(True), no_compiler),
        ]


class OnePair(Pairs):
    """One image with one caption: the similarity of all pairs beside that of chosen ones."""

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """As ``Pairs``, with a caption of L words; both sides get a gradient."""
        inputs = super().draw(case, device, generator)
        inputs["lengths"] = torch.full((case.B, case.N), case.L, device=device)
        inputs["words"].requires_grad_(case.backward)
        return inputs

    def _outputs(self, case: Case, similarity: _Similarity, i: Inputs) -> Outputs:
        wanted = {"grad_regions": i["regions"], "grad_words": i["words"]}
        return with_gradient(
            case,
            lambda: similarity(i["regions"], i["words"], i["lengths"]) * i["weight"],
            wanted,
            "similarity",
        )

    def _all_pairs(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        def similarity(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
            return cross_attention_similarity(
                regions,
                words.squeeze(1),
                direction=self.direction,
                smoothing=_SMOOTHING[self.direction],
                aggregate="mean",
                backend=backend,
            )

        return lambda turn: self._outputs(case, similarity, sets[turn % len(sets)])

    def variants(self, case: Case) -> list[Variant]:
        """All pairs, of which there is one; that pair chosen; eager."""

        def chosen(case: Case, sets: list[Inputs]) -> Run:
            return self._ours("cpu", case, sets)

        return [
            *(v for v in backend_variants(self._all_pairs) if v.name in _BACKENDS),
            Variant("sede cpu, chosen pair", "twin", chosen, absent_backend("cpu")),
            Variant("eager", "eager", self._peer(False)),
        ]
