"""Problems of the weighted InfoNCE around its passes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sede_kernels import functional
from sede_kernels.backends.triton import launch
from sede_kernels.bank import BankView
from sede_kernels.testing import FLOORS
from tests.ptx.kernels.problem import Check, Problem, compared, ids, unit

#: Columns: of two programs and a part of a third.
_DIM = 144
_SETTINGS: dict[str, dict[str, Any]] = {
    "debiased": {"hardness": 2.0, "tau_plus": 0.1, "in_batch_negatives": True, "margin": 0.4},
    "positives": {
        "hardness": 2.0, "false_negatives": "positive", "in_batch_negatives": True,
        "positive_focus": 1.5,
    },
    "attached": {"hardness": 2.0, "detach_weights": False, "positive_focus": 0.5},
}  # fmt: skip


def _loss(reduction: str, dtype: torch.dtype, entries: dict[str, launch.Config]) -> Iterator[Check]:
    """Two sides with all that learns, in several programs; fp32 is multiplied in full."""
    config = entries["info_nce"]
    rows, slots = 2 * config.rows + 3, 530
    tensors = [unit(rows, _DIM, dtype=dtype) for _ in range(4)]
    banks = [unit(slots, _DIM, dtype=dtype) for _ in range(2)]
    bank_ids, query_ids = ids(slots, low=-1), ids(rows)
    for name, settings in _SETTINGS.items():
        outcome = []
        for backend, to in (("triton", dtype), ("reference", torch.float64), ("torch", dtype)):
            leaves = [tensor.to(to, copy=True).requires_grad_() for tensor in tensors]
            scalar = torch.promote_types(to, torch.float32)
            numbers = {"temperature": 0.1, "hardness": settings["hardness"]}
            learned = {
                key: torch.tensor(value, dtype=scalar, requires_grad=True)
                for key, value in numbers.items()
            }
            loss: Tensor = functional.symmetric_info_nce(
                *leaves, *(BankView(bank.to(to), None, bank_ids) for bank in banks),
                ids=query_ids, reduction=reduction, backend=backend, **{**settings, **learned},
            )  # fmt: skip
            weight = torch.linspace(0.5, 2.0, rows, dtype=loss.dtype) if loss.ndim else 1.7
            found = [*leaves, *learned.values()]
            grads = torch.autograd.grad((loss * weight).sum(), found)
            outcome.append((loss.detach(), *grads))
        names = ("loss", "image", "text", "image_key", "text_key", *numbers)
        names = tuple(f"{name} {each}" for each in names)
        yield from compared(names, outcome[0], outcome[1], outcome[2], FLOORS[dtype])


def problems() -> Iterator[Problem]:
    """One for every row of the table."""
    row = {key: (("info_nce", key),) for key in launch.table("info_nce")}
    half, full = torch.bfloat16, torch.float32
    yield Problem("info_nce whole", row["whole"], partial(_loss, "mean", full), every_pass=False)
    yield Problem(
        "info_nce parts", row["parts"], partial(_loss, "mean", half), cores=64, every_pass=False
    )
    yield Problem("info_nce scale", row["scale"], partial(_loss, "none", full), every_pass=False)
