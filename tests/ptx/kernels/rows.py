"""Problems of the kernels that work row by row: erasing and the ring writes."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from sede_kernels import FragmentBank, MemoryBank, functional
from sede_kernels.backends.triton import launch
from sede_kernels.testing import FLOORS
from tests.ptx.kernels.problem import Check, Problem, compared, same

Entries = dict[str, launch.Config]
#: Rules with order statistics, with fp64 sums, and with neither; ranks near both ends and between.
_RULES = (
    ("quantile", 0.3), ("quantile", 0.55), ("quantile", 0.9), ("prob", None),
    ("topk", 1), ("topk", 5), ("topk", 30),
)  # fmt: skip


def _erase(key: str, entries: Entries) -> Iterator[Check]:
    """Rows of every length, most of them of few numbers; a row of a program beyond the last.

    A program's row is that of a few registers: only many rows bring each to a rank that matters.
    """
    config, most = entries["erase"], int(key) - int(key) // 16
    rows = 8 * config.rows + 1
    lengths = torch.randint(0, most + 1, (rows,))
    lengths[torch.rand(rows) < 0.6] = most
    attention = torch.randn(rows, most).mul(2).softmax(1)
    equal = torch.arange(rows) % 5 > 0
    attention[equal] = torch.randint(1, 6, (int(equal.sum()), most)) / 128
    # Off zero: copies of a sum that cancels differ in more than their last bits.
    weight = torch.randn(rows, most, dtype=torch.float64) + 3.0
    for rule, threshold in _RULES:
        name = rule if threshold is None else f"{rule} {threshold}"
        outcome = {}
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            x = attention.to(dtype, copy=True).requires_grad_()
            kept, mask = functional.attention_erase(
                x, rule=rule, threshold=threshold, lengths=lengths, keep_min=2 * most // 3,
                backend=backend,
            )  # fmt: skip
            (grad,) = torch.autograd.grad(kept, x, weight.to(dtype))
            outcome[backend] = mask, kept.detach(), grad
        mask, *found = outcome["triton"]
        want, *truth = outcome["reference"]
        yield same(f"{name} mask", mask, want)
        floor = FLOORS[torch.float32]
        yield from compared((f"{name} kept",), (found[0],), (truth[0],), (truth[0],), floor)
        # The sum in a renormalised row's gradient cancels.
        yield from compared((f"{name} grad",), (found[1],), (truth[1],), (truth[1],), 10 * floor)


def _enqueue(dtype: torch.dtype, entries: Entries) -> Iterator[Check]:
    """Keys that wrap, more of them than slots, a NaN among them."""
    banks = {name: MemoryBank(37, 1104, dtype=dtype) for name in ("triton", "torch")}
    with pytest.MonkeyPatch.context() as patch:
        for step, count in enumerate((30, 20, 50, 1)):
            keys, names = torch.randn(count, 1104), torch.randint(0, 9, (count,))
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


def _enqueue_fragments(dtype: torch.dtype, entries: Entries) -> Iterator[Check]:
    """Sets that wrap, more of them than slots, short ones, a NaN within a length and beyond one."""
    banks = {name: FragmentBank(11, 5, 260, dtype=dtype) for name in ("triton", "torch")}
    for step, (count, width) in enumerate(((7, 5), (6, 4), (15, 5), (1, 1))):
        keys, names = torch.randn(count, width, 260), torch.randint(0, 9, (count,))
        lengths = torch.randint(1, width + 1, (count,)) if step else None
        if step == 1:
            keys[2, 0, 3] = keys[3, 3, 0] = torch.nan
            lengths[3] = 3
        for backend, bank in banks.items():
            bank.enqueue(keys, lengths, names, backend=backend)
    found = banks["triton"].state_dict()
    for name, want in banks["torch"].state_dict().items():
        yield same(name, found[name], want)


def problems() -> Iterator[Problem]:
    """One for every row of the table, and the ring writes."""
    for key in launch.table("erase"):
        yield Problem(f"erase {key}", (("erase", key),), partial(_erase, key))
    for dtype in (torch.bfloat16, torch.int8):
        name = str(dtype).removeprefix("torch.")
        yield Problem(f"enqueue {name}", (), partial(_enqueue, dtype))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield Problem(f"enqueue_fragments {name}", (), partial(_enqueue_fragments, dtype))
