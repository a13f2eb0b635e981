"""Problems of erasing, of the ring write and of both region-word similarities."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sede_kernels import AttentionErase, MemoryBank, functional
from sede_kernels.backends.triton import launch
from sede_kernels.testing import FLOORS
from tests.ptx.kernels.problem import Check, Problem, compared, floor_of, same, unit

Config = launch.Config
Entries = dict[str, Config]
_DTYPE = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
#: Rules with order statistics, with fp64 sums, and with neither.
_RULES = {"quantile": 0.3, "prob": None, "topk": 5}
#: Erasing decides by comparison, which a product of tf32 operands may turn: none there.
_ERASE = {
    "half": AttentionErase(rule="topk", threshold=5),
    "ieee": AttentionErase(rule="prob"),
    "tf32": None,
}


def _erase(key: str, entries: Entries) -> Iterator[Check]:
    """Rows of every length, half of them of equal numbers; a row of a program beyond the last."""
    config, most = entries["erase"], int(key) - int(key) // 16
    rows = 2 * config.rows + 1
    lengths = torch.randint(0, most + 1, (rows,))
    lengths[0] = most
    attention = torch.randn(rows, most).mul(2).softmax(1)
    attention[1::2] = torch.randint(1, 6, attention[1::2].shape) / 128
    weight = torch.randn(rows, most, dtype=torch.float64)
    for rule, threshold in _RULES.items():
        outcome = {}
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            x = attention.to(dtype, copy=True).requires_grad_()
            kept, mask = functional.attention_erase(
                x, rule=rule, threshold=threshold, lengths=lengths, backend=backend
            )
            (grad,) = torch.autograd.grad(kept, x, weight.to(dtype))
            outcome[backend] = mask, kept.detach(), grad
        mask, *found = outcome["triton"]
        want, *truth = outcome["reference"]
        yield same(f"{rule} mask", mask, want)
        floor = FLOORS[torch.float32]
        yield from compared((f"{rule} kept",), (found[0],), (truth[0],), (truth[0],), floor)
        # The sum in a renormalised row's gradient cancels.
        yield from compared((f"{rule} grad",), (found[1],), (truth[1],), (truth[1],), 10 * floor)


def _enqueue(dtype: torch.dtype, entries: Entries) -> Iterator[Check]:
    """Keys that wrap, more of them than slots, a NaN among them."""
    banks = {name: MemoryBank(37, 112, dtype=dtype) for name in ("triton", "torch")}
    with pytest.MonkeyPatch.context() as patch:
        for step, count in enumerate((30, 20, 50, 1)):
            keys, names = torch.randn(count, 112), torch.randint(0, 9, (count,))
            keys[count // 2, 5] = torch.nan if step == 1 else 1.0
            for backend, bank in banks.items():
                patch.setenv("SEDE_BACKEND", backend)
                bank.enqueue(keys, names)
    found = banks["triton"].state_dict()
    for name, want in banks["torch"].state_dict().items():
        got = found[name]
        if want.dtype == torch.int8:
            yield Check(name, float((got.int() - want.int()).abs().max()), 1.0)
        elif want.is_floating_point():
            yield from compared((name,), (got,), (want.double(),), (want,), FLOORS[want.dtype])
        else:
            yield same(name, got, want)


def _similarities(
    function: Any, kind: str, regions: Tensor, words: Tensor, options: dict[str, Any]
) -> Iterator[Check]:
    dtype, outcome = _DTYPE[kind], []
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


def _all_pairs(key: str, entries: Entries) -> Iterator[Check]:
    """32 columns: captions attended by dense sets of 36 regions; 64: 50 regions of any number."""
    kind, block = key.split("/")
    dtype, dim = _DTYPE[kind], _steps(entries)
    options: dict[str, Any] = {"erase": _ERASE[kind]}
    if block == "32":
        regions, words = unit(7, 36, dim, dtype=dtype), unit(5, 20, dim, dtype=dtype)
        options["direction"] = "i2t"
    else:
        regions, words = unit(5, 50, dim, dtype=dtype), unit(7, 20, dim, dtype=dtype)
        options |= {
            "direction": "t2i",
            "region_lengths": torch.tensor([50, 33, 7, 40, 50]),
            "word_lengths": torch.tensor([20, 3, 16, 17, 9, 20, 5]),
        }
    yield from _similarities(functional.cross_attention_similarity, kind, regions, words, options)


def _chosen_pairs(key: str, entries: Entries) -> Iterator[Check]:
    """Words ask regions; the sizes pad to those of the key."""
    kind, _, blocks = key.partition("/")
    queries, sources = ({"32": 21, "64": 40}[block] for block in blocks.split("x"))
    dtype, dim = _DTYPE[kind], _steps(entries)
    regions, words = unit(3, 1, sources, dim, dtype=dtype), unit(3, 2, queries, dim, dtype=dtype)
    options = {
        "direction": "t2i",
        "erase": _ERASE[kind],
        "region_lengths": torch.tensor([[sources], [6], [sources - 1]]),
        "word_lengths": torch.tensor([[queries, 7], [1, 9], [queries, queries - 1]]),
    }
    yield from _similarities(functional.cross_attention_pairs, kind, regions, words, options)


def problems() -> Iterator[Problem]:
    """One for every row of the tables, and the ring write."""

    for key in launch.table("erase"):
        yield Problem(f"erase {key}", (("erase", key),), partial(_erase, key))
    for dtype in (torch.bfloat16, torch.int8):
        name = str(dtype).removeprefix("torch.")
        yield Problem(f"enqueue {name}", (), partial(_enqueue, dtype))
    for key in launch.table("cross_attention"):
        rows = (("cross_attention", key), ("cross_attention_backward", key))
        yield Problem(f"cross_attention {key}", rows, partial(_all_pairs, key))
    for key in launch.table("cross_attention_pairs"):
        rows = tuple((f"cross_attention_pairs{end}", key) for end in ("", "_backward", "_grad"))
        yield Problem(f"cross_attention_pairs {key}", rows, partial(_chosen_pairs, key))
