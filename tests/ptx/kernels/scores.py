"""Problems of the loss of given scores."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sede_kernels import functional
from sede_kernels.backends.triton import launch
from sede_kernels.testing import FLOORS
from tests.ptx.kernels.problem import Check, Problem, compared, same, tiles

Entries = dict[str, launch.Config]
_OPTIONS = {
    "detached": {},
    "attached": {"detach_weights": False, "false_negatives": "keep"},
    "positives": {"normalize_weights": False, "false_negatives": "positive"},
}
_NAMES = ("loss", "log_negatives", "d scores", "d temperature", "d hardness", "d positive")


def _outcome(
    scores: Tensor, positive: Tensor | None, backend: str, **options: object
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """How many negatives there are, and all that is compared."""
    number = torch.float64 if scores.dtype == torch.float64 else torch.float32
    learned = [scores.detach().requires_grad_()]
    learned += [torch.tensor(x, dtype=number, requires_grad=True) for x in (0.3, 2.0)]
    if positive is not None:
        learned.append(positive.detach().requires_grad_())
    loss, stats = functional.score_info_nce(
        learned[0], *learned[3:], temperature=learned[1], hardness=learned[2],
        reduction="none", return_stats=True, backend=backend, **options,
    )  # fmt: skip
    grads = torch.autograd.grad(loss.sum(), learned)
    return stats.negatives, (loss.detach(), stats.log_negatives, *grads)


def _scores(key: str, dtype: torch.dtype, entries: Entries) -> Iterator[Check]:
    """Rows beyond the last of a program, more columns than a step has; some rows without any."""
    config = entries["score_info_nce"]
    rows, columns = 2 * config.rows + 1, tiles(config)
    scores = torch.randn(rows, columns).to(dtype)
    valid = torch.rand(rows, columns) < 0.8
    valid[1] = False
    masks = {
        "valid": valid,
        "query_ids": torch.arange(rows) % 7,
        "key_ids": torch.randint(-1, 9, (columns,)),
    }
    for name, options in _OPTIONS.items():
        positive = torch.randn(rows).to(dtype) if name == "positives" else None
        found = {}
        for backend, wide in (("triton", dtype), ("reference", torch.float64), ("torch", dtype)):
            given = scores.to(wide)
            given = given.t().contiguous().t() if key == "columns" else given
            right = None if positive is None else positive.to(wide)
            found[backend] = _outcome(given, right, backend, **masks, **options)
        yield same(f"{name} negatives", found["triton"][0], found["reference"][0])
        yield from compared(
            tuple(f"{name} {result}" for result in _NAMES[: len(found["triton"][1])]),
            found["triton"][1],
            found["reference"][1],
            found["torch"][1],
            FLOORS[dtype],
        )


def problems() -> Iterator[Problem]:
    """Both layouts of the scores."""
    for key, dtype in (("rows", torch.float32), ("columns", torch.bfloat16)):
        yield Problem(
            f"score_info_nce {key}", (("score_info_nce", key),), partial(_scores, key, dtype)
        )
