"""Problems of both region-word similarities."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sede_kernels import AttentionErase, functional
from sede_kernels.backends.triton import launch
from tests.ptx.kernels.problem import Check, Problem, compared, floor_of, unit

Config = launch.Config
Entries = dict[str, Config]
_DTYPE = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
#: Erasing decides by comparison, which a product of tf32 operands may turn: none there.
_ERASE = {
    "half": AttentionErase(rule="topk", threshold=5),
    "ieee": AttentionErase(rule="prob"),
    "tf32": None,
}


def _similarities(
    function: Any, kind: str, regions: Tensor, words: Tensor, options: dict[str, Any]
) -> Iterator[Check]:
    dtype, outcome = regions.dtype, []
    grad = None
    for backend, to in (("reference", torch.float64), ("triton", dtype), ("torch", dtype)):
        r, w = (x.to(to, copy=True).requires_grad_() for x in (regions, words))
        score = function(r, w, backend=backend, **options)
        grad = torch.randn(score.shape, dtype=torch.float64) if grad is None else grad
        score.backward(grad.to(score.dtype))
        outcome.append((score.detach(), r.grad, w.grad))
    names = ("similarity", "d_regions", "d_words")
    floor = floor_of(kind, dtype)
    yield from compared(names, outcome[1], outcome[0], outcome[2], floor)


def _steps(entries: Entries) -> int:
    """Columns of D that every pipeline goes over five times, and a part of a step."""
    return max(config.cols * (config.stages + 2) for config in entries.values()) + 16


def _opposite(sets: Tensor) -> Tensor:
    """The second set becomes one vector with both signs in turn: what attends it cancels."""
    signs = torch.tensor([1.0, -1.0]).repeat(sets.shape[1])[: sets.shape[1], None]
    sets[1] = (sets[1, :1] * signs + 0.1 * sets[1]).to(sets.dtype)
    return sets


def _all_pairs(key: str, entries: Entries, *, fp16: bool = False) -> Iterator[Check]:
    """32 columns: captions attended by dense sets of 36 regions; 64: 50 regions of any number.

    In the pairs of one source set the contexts cancel, and the kernels of chosen pairs follow.
    """
    kind, block = key.split("/")
    dtype, dim = torch.float16 if fp16 else _DTYPE[kind], _steps(entries)
    options: dict[str, Any] = {"erase": _ERASE[kind], "smoothing": 1.0}
    if key == "ieee/64":  # "prob" erases the regions of one sign, and nothing would cancel
        options["erase"] = AttentionErase(rule="absolute", threshold=0.0)
    if block == "32":
        regions = unit(7, 36, dim, dtype=dtype)
        words = _opposite(unit(5, 20, dim, dtype=dtype))
        options["direction"] = "i2t"
    else:
        regions = _opposite(unit(5, 50, dim, dtype=dtype))
        words = unit(7, 20, dim, dtype=dtype)
        options |= {
            "direction": "t2i",
            "region_lengths": torch.tensor([50, 33, 7, 40, 50]),
            "word_lengths": torch.tensor([20, 3, 16, 17, 9, 20, 5]),
        }
    yield from _similarities(functional.cross_attention_similarity, kind, regions, words, options)


def _chosen_pairs(key: str, entries: Entries, *, fp16: bool = False) -> Iterator[Check]:
    """Words ask regions; the sizes pad to those of the key."""
    kind, _, blocks = key.partition("/")
    queries, sources = ({"32": 21, "64": 40}[block] for block in blocks.split("x"))
    dtype, dim = torch.float16 if fp16 else _DTYPE[kind], _steps(entries)
    regions, words = unit(3, 1, sources, dim, dtype=dtype), unit(3, 2, queries, dim, dtype=dtype)
    options = {
        "direction": "t2i",
        "erase": _ERASE[kind],
        "region_lengths": torch.tensor([[sources], [6], [sources - 1]]),
        "word_lengths": torch.tensor([[queries, 7], [1, 9], [queries, queries - 1]]),
    }
    yield from _similarities(functional.cross_attention_pairs, kind, regions, words, options)


def _cancelling_pairs(key: str, entries: Entries) -> Iterator[Check]:
    """Contexts of a few thousandths of their sources, which add up to nothing."""
    kind, dim = key.partition("/")[0], _steps(entries)
    regions, words = torch.randn(2, 1, 12, dim), torch.randn(2, 3, 5, dim)
    words -= words.mean(dim=2, keepdim=True)
    options = {"direction": "i2t", "smoothing": 3e-3, "aggregate": "mean"}
    yield from _similarities(functional.cross_attention_pairs, kind, regions, words, options)


def _many_pairs(key: str, entries: Entries) -> Iterator[Check]:
    """The only caption whose contexts cancel has 129 before it: a second look at the marks."""
    kind, dim = key.partition("/")[0], _steps(entries)
    regions, words = (unit(*shape, dim, dtype=_DTYPE[kind]) for shape in ((2, 36), (130, 6)))
    words[-2:] = _opposite(words[-2:])
    options = {"direction": "i2t", "smoothing": 1.0}
    yield from _similarities(functional.cross_attention_similarity, kind, regions, words, options)


def problems() -> Iterator[Problem]:
    """One for every row of the tables, those of half inputs in bf16 and, once each, in fp16.

    And one of contexts that cancel, for which full fp32 must be all of it, and one of many pairs.
    """
    for name, ends, call, in_fp16 in (
        ("cross_attention", ("", "_backward"), _all_pairs, "half/32"),
        ("cross_attention_pairs", ("", "_backward", "_grad"), _chosen_pairs, "half/32x32"),
    ):
        for key in launch.table(name):
            rows = tuple((name + end, key) for end in ends)
            yield Problem(f"{name} {key}", rows, partial(call, key))
            if key == in_fp16:
                yield Problem(f"{name} {key} fp16", rows, partial(call, key, fp16=True))
    for name, ends, key, what, call in (
        ("cross_attention_pairs", ("", "_backward", "_grad"), "ieee/32x32", "cancelling",
         _cancelling_pairs),
        ("cross_attention", ("", "_backward"), "half/32", "many", _many_pairs),
    ):  # fmt: skip
        rows = tuple((name + end, key) for end in ends)
        yield Problem(f"{name} {key} {what}", rows, partial(call, key))
