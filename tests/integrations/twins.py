"""Every twin with a small bank, and one training step of each, for what must hold of all."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sede_kernels.integrations import bfan, imram, scan, sgraf, vse_infinity, vsepp
from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.lightly import NTXentLoss
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss
from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
from tests.conftest import unit

ROWS, DIM, SIZE = 3, 8, 7
OPTIONS = SimpleNamespace(
    cross_attn="t2i",
    raw_feature_norm="clipped_l2norm",
    agg_func="Mean",
    lambda_softmax=9.0,
    lambda_lse=6.0,
    embed_size=DIM,
    focal_type="equal",
)


class Twin(NamedTuple):
    """A twin and how a training step calls it.

    Attributes:
        build: keywords (``start_step``, ``bank_size``) -> module.
        step: (module, left, right, ids) -> loss; the bank is written.
        warms: whether it takes ``start_step``.
        compiles: whether a step with a bank is one graph.
    """

    build: Callable[..., nn.Module]
    step: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    warms: bool = False
    compiles: bool = True


def fragments(rows: Tensor) -> Tensor:
    """(B, 2, D) from (B, D)."""
    return torch.stack([rows, rows.flip(1)], dim=1)


def score(images: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
    """A score function of the user's own, at module level as pickle wants it."""
    return images.mean(dim=1) @ captions.mean(dim=1).t()


def fragment_step(module: nn.Module, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    lengths = left.new_full((left.shape[0],), 2, dtype=torch.int64)
    return module(fragments(left), fragments(right), lengths, ids)


def score_step(module: nn.Module, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    lengths = left.new_full((left.shape[0],), 2, dtype=torch.int64)
    parts = fragments(left), fragments(right), lengths
    return module(left @ right.t(), parts, ids)


def moco_step(module: MoCoQueue, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    loss = module(left, right.detach(), ids)
    module.dequeue_and_enqueue(right.detach(), ids)
    return loss


def albef_step(module: RetrievalQueues, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    return module(left, right, left.detach(), right.detach(), ids, temp=0.1)


BANK = {"bank_size": SIZE}
WIDE = {**BANK, "dim": DIM}
SETS = {**BANK, "regions": 2, "max_words": 2}
SCORED = {**SETS, "dim": DIM, "score": score}


def _with(build: Callable[..., nn.Module], *arguments: object, **defaults: object) -> Any:
    return lambda **changes: build(*arguments, **{**defaults, **changes})


def pair_step(module: nn.Module, left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    return module(left, right, ids)


TWINS = {
    "vsepp-hardest": Twin(
        _with(vsepp.ContrastiveLoss, 0.2, False, True, **WIDE), pair_step, warms=True
    ),
    "vsepp-all": Twin(_with(vsepp.ContrastiveLoss, 0.2, **WIDE), pair_step, warms=True),
    "vsepp-infonce": Twin(
        _with(vsepp.ContrastiveLoss, temperature=0.1, hardness=2.0, **WIDE), pair_step, warms=True
    ),
    "vse_infinity": Twin(
        _with(vse_infinity.ContrastiveLoss, OPTIONS, 0.2, True, **BANK), pair_step, warms=True
    ),
    "scan": Twin(
        _with(scan.ContrastiveLoss, OPTIONS, 0.2, True, **SETS),
        fragment_step,
        warms=True,
        compiles=False,
    ),
    "bfan": Twin(
        _with(bfan.ContrastiveLoss, OPTIONS, 0.2, True, **SETS),
        fragment_step,
        warms=True,
        compiles=False,
    ),
    "sgraf": Twin(
        _with(sgraf.ContrastiveLoss, 0.2, True, **SCORED), score_step, warms=True, compiles=False
    ),
    "imram": Twin(
        _with(imram.ContrastiveLoss, OPTIONS, 0.2, True, **SCORED),
        score_step,
        warms=True,
        compiles=False,
    ),
    "open_clip": Twin(
        _with(ClipLoss, **WIDE),
        lambda module, left, right, ids: module(left, right, left.new_tensor(10.0), ids=ids),
        warms=True,
    ),
    "sentence_transformers": Twin(
        _with(MultipleNegativesRankingLoss, nn.Identity(), ids_in_labels=True, **WIDE),
        lambda module, left, right, ids: module.compute_loss_from_embeddings([left, right], ids),
        warms=True,
    ),
    "moco": Twin(_with(MoCoQueue, DIM, SIZE), moco_step),
    "lightly": Twin(_with(NTXentLoss, memory_bank_size=(SIZE, DIM)), pair_step),
    "albef": Twin(_with(RetrievalQueues, DIM, SIZE), albef_step),
}
WARMING = [name for name, twin in TWINS.items() if twin.warms]


def batch(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(left, right, ids) of one step; left and right carry a gradient."""
    torch.manual_seed(seed)
    left, right = (unit(ROWS, DIM, dtype=dtype).requires_grad_() for _ in range(2))
    return left, right, torch.arange(ROWS) + 2 * seed


def run(name: str, module: nn.Module, seeds: range) -> list[Tensor]:
    """The losses of these steps."""
    return [TWINS[name].step(module, *batch(seed)).detach() for seed in seeds]
