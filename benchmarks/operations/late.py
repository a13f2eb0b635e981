"""Late interaction of all pairs, ``attention="max"``: ColBERT's MaxSim of captions and images."""

from collections.abc import Callable

import torch
from torch import Tensor

from sede_kernels import cross_attention_similarity

from ..case import Case, Inputs, Variant, Work
from ..ours import backend_variants
from ..peers.bank import no_compiler
from .scan import Scan, ScanOptions


def all_at_once(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """(B, C): every product of a region and a word, the largest of each word, their sum."""
    scores = torch.einsum("brd,cld->bclr", regions, words).amax(3)
    padding = torch.arange(words.shape[1], device=words.device) >= lengths.unsqueeze(1)
    return scores.masked_fill(padding, 0.0).sum(2)


class Late(Scan):
    """(B images of R regions, C captions of up to L words) -> (B, C) sums of largest products."""

    def __init__(self) -> None:
        super().__init__(ScanOptions("t2i", 1.0, "sum", 1.0, False))

    def _library(self, backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def similarity(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
            return cross_attention_similarity(
                regions,
                words,
                word_lengths=lengths,
                attention="max",
                aggregate="sum",
                backend=backend,
            )

        return similarity

    def _plain(self, function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return function

    def yardstick(self, case: Case, inputs: Inputs) -> dict[str, Tensor]:
        """All products at once."""
        return self._outputs(case, all_at_once, inputs)

    def work(self, case: Case) -> Work:
        """S; its gradient touches one region a word and costs next to nothing."""
        least = min(5, case.L)
        pairs = case.B * case.C * case.R * (least + case.L) / 2
        width = torch.empty(0, dtype=case.torch_dtype).element_size()
        moved = width * case.D * (case.B * case.R + case.C * case.L) * (1 + case.backward)
        return Work(
            "2 B R C W D, W mean words", 2 * pairs * case.D, "fragments and gradients once", moved
        )

    def variants(self, case: Case) -> list[Variant]:
        """Ours, all products at once, eager and compiled."""
        served = "sede cpu", "sede torch"  # the other backends have no kernel for it
        ours = [one for one in backend_variants(self._ours) if one.name in served]
        return [
            *ours,
            Variant("eager", "eager", self._peer(all_at_once)),
            Variant("torch.compile", "peer", self._peer(all_at_once, True), no_compiler),
        ]
