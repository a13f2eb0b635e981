"""In-batch logits of a multiple-negatives ranking loss, for some of the rows at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Similarity = Callable[[Tensor, Tensor], Tensor]


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """(n, m) of (n, D) and (m, D)."""
    return left @ right.t()


class Candidates(NamedTuple):
    """The columns of all ranks, and how they are compared.

    Attributes:
        columns: queries, positives, negatives..., each (W, D) with W rows on all ranks together.
        ids: (W,) what each row is of, or None.
        similarity: (n, D), (m, D) -> (n, m).
        scale: 1 / temperature.
        directions: as the host names them.
        hardness_mode: as the host.
        hardness_strength: >= 0.
    """

    columns: list[Tensor]
    ids: Tensor | None
    similarity: Similarity
    scale: float
    directions: tuple[str, ...]
    hardness_mode: str | None
    hardness_strength: float

    def logits(self, local: slice) -> list[Tensor]:
        """Of each direction, for the rows of ``local``.

        The first matrix is (n, W (1 + negatives)); the right answers of row i lie at column
        ``local.start + i``.
        """
        queries, documents = self.columns[0], torch.cat(self.columns[1:])
        query, positive = queries[local], self.columns[1][local]
        index = torch.arange(queries.shape[0], device=queries.device)
        own = index[local].unsqueeze(1) == index  # [n, W]
        alike = None
        if self.ids is not None:
            alike = (self.ids[local].unsqueeze(1) == self.ids) & ~own
        same = own if alike is None else own | alike

        def masked(similarity: Tensor, mask: Tensor | None) -> Tensor:
            logits = self.scale * similarity
            if mask is None:
                return logits
            copies = similarity.shape[1] // max(len(index), 1)
            return logits.masked_fill(mask.repeat(1, copies), -torch.inf)

        compare = self.similarity
        found = [masked(compare(query, documents), alike)]
        if self.hardness_mode is not None and self.hardness_strength:
            strength = self.hardness_strength / self.scale
            weighted = self._weighted(own)
            found[0] = found[0] + (strength * found[0].detach()).masked_fill(~weighted, 0.0)
        if "query_to_query" in self.directions:
            found.append(masked(compare(query, queries), same))
        if "doc_to_query" in self.directions:
            found.append(masked(compare(queries, positive).t(), alike))
        if "doc_to_doc" in self.directions:
            found.append(masked(compare(documents, positive).t(), same))
        return found

    def _weighted(self, own: Tensor) -> Tensor:
        """(n, W columns), True for the documents that ``hardness_mode`` weighs."""
        in_batch = self.hardness_mode in ("in_batch_negatives", "all_negatives")
        hard = self.hardness_mode in ("hard_negatives", "all_negatives")
        others = ~own & in_batch
        columns = len(self.columns) - 1
        return torch.cat([others] + [others | (own & hard)] * (columns - 1), dim=1)
