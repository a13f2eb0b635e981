"""One whole training step of each model of the training package, on a generated data folder."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import FragmentBank, MemoryBank
from sede_kernels.training.models import MODELS

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of
from ..ours import BACKENDS, absent_backend

_WORDS = 200
_LONGEST = 15

#: Name -> settings of the trainer: each model as it comes, and SCAN's other directions.
STEPS: dict[str, dict[str, str]] = {
    **{name: {"model": name} for name in MODELS},
    **{f"scan_{way}": {"model": "scan", "direction": way} for way in ("i2t", "both")},
}


def compares_fragments(step: str) -> bool:
    """Whether its banks hold sets of fragments."""
    return MODELS[STEPS[step]["model"]].compares_fragments


def write_part(folder: Path, part: str, case: Case, rng: "np.random.Generator") -> None:
    """A part in the layout of the ``*_precomp`` folders: one caption an image."""
    np.save(
        folder / f"{part}_ims.npy",
        rng.standard_normal((2 * case.B, case.R, case.F), dtype=np.float32),
    )
    captions = [
        " ".join(f"w{word}" for word in rng.integers(0, _WORDS, rng.integers(5, _LONGEST + 1)))
        for _ in range(2 * case.B)
    ]
    (folder / f"{part}_caps.txt").write_text("\n".join(captions) + "\n")
    numbers = "\n".join(str(n) for n in range(2 * case.B))
    (folder / f"{part}_index.txt").write_text(numbers + "\n")


def fill_banks(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Full banks of random unit vectors: steps are timed as they are after the first epochs."""
    for bank in module.modules():
        if isinstance(bank, MemoryBank):
            drawn = torch.randn(bank.rows.shape, **of(generator))
            bank.enqueue(drawn.to(bank.rows.device), backend="torch")
        elif isinstance(bank, FragmentBank):
            drawn = F.normalize(torch.randn(bank.rows.shape, **of(generator)), dim=2)
            bank.enqueue(drawn.to(bank.rows.device))


class _Wide:
    """A part whose regions come in fp64."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def regions(self, images: Any) -> Tensor:
        wide: Tensor = self._part.regions(images).double()
        return wide


@contextmanager
def _backend(name: str) -> Iterator[None]:
    """The default backend of the calls inside, which the training package does not choose."""
    before = os.environ.get("SEDE_BACKEND")
    os.environ["SEDE_BACKEND"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["SEDE_BACKEND"]
        else:
            os.environ["SEDE_BACKEND"] = before


class TrainingStep(Operation):
    """Momentum update, keys, loss against batch and banks, backward, AdamW, enqueue.

    With all three modules on: erasing, weighting, banks. No dropout, so that fp64 can follow.
    """

    def __init__(self, step: str) -> None:
        self.settings: dict[str, Any] = dict(STEPS[step])

    def absent(self, case: Case, device: torch.device) -> str | None:
        """The trainer's own needs."""
        missing = [m for m in ("tqdm", "tensorboard") if importlib.util.find_spec(m) is None]
        return f"not installed: pip install {' '.join(missing)}" if missing else None

    def most_sets(self, device: torch.device) -> int:
        """On a GPU the weights and banks of two trainers are larger than its cache."""
        return 2 if device.type == "cuda" else super().most_sets(device)

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Features, captions, and the state of the banks."""
        seed = int(torch.randint(1 << 30, (1,), **of(generator)))
        folder = tempfile.TemporaryDirectory(prefix="sede-bench-")
        rng = np.random.default_rng(seed)
        for part in ("train", "dev", "test"):
            write_part(Path(folder.name), part, case, rng)
        return {"folder": folder, "seed": seed, "device": str(device)}

    def _trainer(self, case: Case, inputs: Inputs) -> Any:
        from sede_kernels.training.config import TrainConfig
        from sede_kernels.training.loop import Trainer

        config = TrainConfig(
            data=inputs["folder"].name,
            **self.settings,
            batch_size=case.B,
            dim=case.D,
            bank=case.K,
            weighting=5.0,
            erase="low",
            dropout=0.0,
            seed=inputs["seed"] % 1000,
            device=inputs["device"],
        )
        trainer = Trainer(config, Path(inputs["folder"].name) / "run")
        trainer.model.train()
        fill_banks(trainer.objective, torch.Generator().manual_seed(inputs["seed"]))
        return trainer

    def _step(self, case: Case, trainer: Any, turn: int) -> Outputs:
        start = turn % 2 * case.B
        loss = trainer.train_step(trainer.batch_of(np.arange(start, start + case.B)))
        named = trainer.model.named_parameters()
        grads = {f"g.{name}": p.grad for name, p in named if p.grad is not None}
        return {"loss": torch.tensor(loss, dtype=torch.float64), **grads}

    def finish(self, case: Case, outputs: Outputs) -> Outputs:
        """Loss, and all gradients as one vector."""
        parts = [v.detach().double().flatten() for k, v in outputs.items() if k.startswith("g.")]
        return {"loss": outputs["loss"], "gradient": torch.cat(parts)}

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The same step with model, banks and features in fp64."""
        trainer = self._trainer(case, inputs)
        for module in (trainer.model, trainer.objective, *trainer.momentum):
            module.double()
        trainer.train_part = _Wide(trainer.train_part)
        with _backend("torch"):
            return self.finish(case, self._step(case, trainer, 0))

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """The same step in the case's dtype by the PyTorch backend."""
        with _backend("torch"):
            return self.finish(case, self._step(case, self._trainer(case, inputs), 0))

    def work(self, case: Case) -> Work:
        """No formula: most of it is the encoders'."""
        return Work("none: a whole model", None, "none: a whole model", None)

    def _with(self, backend: str) -> Callable[[Case, list[Inputs]], Run]:
        def build(case: Case, sets: list[Inputs]) -> Run:
            trainers = [self._trainer(case, i) for i in sets]

            def run(turn: int) -> Outputs:
                with _backend(backend):
                    return self._step(case, trainers[turn % len(sets)], turn)

            return run

        return build

    def variants(self, case: Case) -> list[Variant]:
        """Kernels as ``auto`` picks them; beside them, as a peer, the step without any."""
        names = [name for name in BACKENDS if name != "torch"]

        def no_kernels(case: Case, device: torch.device) -> str | None:
            reasons = {name: absent_backend(name)(case, device) for name in names}
            if any(reason is None for reason in reasons.values()):
                return None
            return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

        return [
            Variant("sede kernels", "ours", self._with("auto"), no_kernels),
            Variant("sede torch", "peer", self._with("torch")),
        ]
