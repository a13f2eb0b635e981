"""sentence-transformers: its gradient-caching ranking loss with a bank and ids."""

# mypy: disable-error-code="import-untyped, import-not-found"

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels.checks import check_count
from sede_kernels.integrations import sentence_transformers
from sede_kernels.integrations._candidates import Candidates, Similarity
from sede_kernels.integrations._checks import Ids

try:
    from sentence_transformers.base.losses.gradcache import CachedLossMixin
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("sentence_transformers"):
        raise
    raise ImportError(
        "sede_kernels.integrations.sentence_transformers_cached builds on sentence-transformers "
        "6.2 or newer; run pip install 'sede-kernels[sentence-transformers]'."
    ) from error


class _Token:
    """One step; a class of its own so that it can be referred to weakly."""


class CachedMultipleNegativesRankingLoss(
    CachedLossMixin,
    sentence_transformers.MultipleNegativesRankingLoss,
):
    """Twin of the host's loss of that name, with a bank of past documents.

    The embeddings are computed in mini-batches without a graph, the loss of the whole batch is
    propagated back to them, and the mini-batches are embedded again with one (GradCache). Values
    and gradients are those of ``MultipleNegativesRankingLoss`` of the whole batch; a step stores
    the whole batch once, also inside ``MatryoshkaLoss``.

    Args:
        model: the SentenceTransformer.
        scale, similarity_fct, gather_across_devices, directions: as in
            ``sentence_transformers.MultipleNegativesRankingLoss``.
        partition_mode, hardness_mode, hardness_strength, settings: as there, but for ``sharded``:
            every mini-batch would ask all ranks, and their numbers of mini-batches may differ.
        mini_batch_size: rows embedded at a time, and rows of logits held at a time.
        mini_batch_num_tokens: as the host, where it has the option.
        show_progress_bar: as the host.

    Cost:
        Every text is embedded twice; the activations and the logits of one mini-batch are held.

    Source:
        Gao et al. 2021 (GradCache).
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Similarity | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        **settings: Any,
    ) -> None:
        name = "CachedMultipleNegativesRankingLoss"
        if settings.get("sharded"):
            raise ValueError(
                f"{name}: sharded=True is not served, for ranks may have different numbers of "
                "mini-batches; use MultipleNegativesRankingLoss(sharded=True)."
            )
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
            **settings,
        )
        self.mini_batch_size = check_count(name, "mini_batch_size", mini_batch_size, least=1)
        if mini_batch_num_tokens is not None:
            check_count(name, "mini_batch_num_tokens", mini_batch_num_tokens, least=1)
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._now = _Token()
        self._backward = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_now": _Token()}

    def _token(self) -> Any:
        return self._now

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card: those of the plain loss, and of the mini-batches."""
        return {
            **super().get_config_dict(),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch of columns; its backward pass embeds the batch again."""
        self._now = _Token()
        loss: Tensor = self.forward_cached(list(sentence_features), labels)
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Ids | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings in mini-batches; the host's hook, which its wrappers call."""
        self._backward = with_backward
        try:
            loss = self.compute_loss_from_embeddings([torch.cat(part) for part in reps], labels)
        finally:
            self._backward = False
        if with_backward:
            torch.autograd.backward(loss)
            loss = loss.detach()
        return loss

    def _rows(
        self, candidates: Candidates, query: Tensor, ids: Tensor | None, offset: int
    ) -> Tensor:
        if not self._backward or len(query) <= self.mini_batch_size:
            return super()._rows(candidates, query, ids, offset)
        rows: Tensor = _InParts.apply(  # type: ignore[no-untyped-call]
            self, candidates, query, ids, offset, *candidates.columns
        )
        return rows

    def part(
        self, candidates: Candidates, query: Tensor, ids: Tensor | None, offset: int, rows: slice
    ) -> Tensor:
        """The losses of some of the rows."""
        some = None if ids is None else ids[rows]
        return super()._rows(candidates, query[rows], some, offset + rows.start)


def _leaves(columns: Sequence[Tensor]) -> list[Tensor]:
    return [column.detach().requires_grad_(column.requires_grad) for column in columns]


class _InParts(torch.autograd.Function):
    """Losses and gradients of ``mini_batch_size`` rows at a time, for a sum that is taken later.

    The backward pass may only scale all rows alike, as the mean of a batch does.
    """

    @staticmethod
    def forward(ctx: Any, loss: Any, candidates: Any, query: Any, *rest: Any) -> Tensor:
        ids, offset, *columns = rest
        leaves = _leaves([query, *columns])
        found = []
        size = loss.mini_batch_size
        with torch.enable_grad():
            inner = candidates._replace(columns=leaves[1:])
            for start in range(0, len(query), size):
                rows = slice(start, min(start + size, len(query)))
                part = loss.part(inner, leaves[0], ids, offset, rows)
                torch.autograd.backward(part.sum())
                found.append(part.detach())
        ctx.save_for_backward(*(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, *columns = (found * grad[0] for found in ctx.saved_tensors)
        return None, None, query, None, None, *columns
