"""``dispatched_ops_train_step_*``: kernel launches and torch ops of one step of ``sede train``.

Encoders, losses, gradients, optimizer, momentum encoders and banks; counted as ``sede bench host``
counts a loss, on made-up features of a small corpus. Sizes do not change the numbers.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sede_kernels.training.config import TrainConfig
from sede_kernels.training.loop import Trainer

#: Name -> the settings of ``sede train`` that it stands for.
CASES: dict[str, dict[str, Any]] = {
    "vse": {"model": "vse", "bank": 16, "weighting": 5.0},
    "scan": {"model": "scan", "bank": 16, "weighting": 5.0},
}
_IMAGES, _CAPTIONS, _REGIONS, _WIDTH = 16, 5, 4, 8
_STEPS = 4  # before the one that counts: the banks are full, the optimizer has its state


def corpus(folder: Path) -> Path:
    """A corpus of the SCAN family's form with random features."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        shape = (_IMAGES, _REGIONS, _WIDTH)
        np.save(folder / f"{part}_ims.npy", draw.standard_normal(shape, dtype=np.float32))
        lines = [f"a {part} dog {n} of {k}" for n in range(_IMAGES) for k in range(_CAPTIONS)]
        (folder / f"{part}_caps.txt").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def trainer(settings: dict[str, Any]) -> Iterator[Trainer]:
    """A trainer whose next step is one of many."""
    with tempfile.TemporaryDirectory() as home:
        config = TrainConfig(
            data=str(corpus(Path(home) / "made_up_precomp")),
            batch_size=8,
            dim=8,
            word_dim=8,
            threads=1,
            **settings,
        )
        made = Trainer(config, Path(home) / "run")
        made.model.train()
        for _ in range(_STEPS):
            step(made)
        yield made


def step(made: Trainer) -> None:
    """One step of the trainer, as its loop takes it."""
    start = 8 * made.step % (_IMAGES * _CAPTIONS - 8)
    made.train_step(made.batch_of(np.arange(start, start + 8)))
    made.step += 1


def results(counted: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
    """The cases as a record keeps them; ``counted`` is the counter of the losses."""
    found = {}
    for name, settings in CASES.items():
        with trainer(settings) as made, counted() as counter:
            step(made)
        ops = Counter(counter.names)
        found[f"dispatched_ops_train_step_{name}"] = {
            "settings": settings,
            "ops": sum(ops.values()),
            "of_sede": sum(n for op, n in ops.items() if not op.startswith("aten::")),
            "by_name": dict(sorted(ops.items())),
        }
    return found
