"""One rank's part of ``sede train``: whole runs, stopped ones, and what a step communicates."""

import io
import json
import os
import shutil
from contextlib import nullcontext, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from sede_kernels.cli import main
from sede_kernels.training import checkpoint
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.loop import Trainer
from sede_kernels.training.models import Encoded
from sede_kernels.training.models.base import Sizes
from sede_kernels.training.models.scan import Scan
from sede_kernels.training.objective import FragmentObjective, VectorObjective
from sede_kernels.training.ranks import Ranks, guarded, here
from tests.distributed.losses import gap

# 30 captions in batches of 7: the last one has 2, so some of four ranks have none.
COMMON = ["--data=tiny", "--epochs=2", "--dim=4", "--word-dim=4", "--threads=1", "--batch-size=7"]
BANKS = ["--bank=16", "--bank-start=4", "--bank-keys=online"]
RUNS = {
    "vse": [],
    "banks": [*BANKS, "--weighting=3"],
    "scan": [*BANKS, "--model=scan", "--erase=high", "--erase-pass=second"],
    "hinge": ["--bank=16", "--bank-keys=online", "--loss=hinge"],
}
STOP = 7


def trained(out: Path, flags: list[str], stop_on: int | None = None, stop: int = STOP) -> Any:
    """Exit status and losses of a run; the rank ``stop_on`` is told to stop in a step."""
    losses: list[float] = []
    step = Trainer.train_step

    def counted(self: Trainer, batch: Any) -> float:
        if stop_on == self.ranks.rank and self.step + 1 == stop:
            self.interrupted = True
        losses.append(step(self, batch))
        return losses[-1]

    with mock.patch.object(Trainer, "train_step", counted):
        words = ["--resume", str(out)] if (out / "config.json").exists() else ["--out", str(out)]
        here().wait()  # until all have looked
        return main(["train", *words, *flags]), losses


def curves(rank: int, folder: Path) -> dict[str, Any]:
    """Every run, with the losses of its steps."""
    world = here().world
    os.environ["SEDE_DATA"] = str(folder / "data")
    return {
        name: trained(folder / f"{name}-{world}", [*COMMON, "--dropout=0", *flags])
        for name, flags in RUNS.items()
    }


def stopped(rank: int, folder: Path) -> dict[str, Any]:
    """A run that the last rank stops, resumed; one that goes on from what one process saved."""
    os.environ["SEDE_DATA"] = str(folder / "data")
    found, last = {}, here().world - 1
    flags = [*COMMON, *RUNS["scan"]]
    found["whole"] = trained(folder / "whole", flags)
    found["first"] = trained(folder / "stopped", flags, stop_on=last)
    if rank == 0:
        shutil.copytree(folder / "stopped", folder / "kept")
    here().wait()
    found["second"] = trained(folder / "stopped", [])
    found["from one"] = trained(folder / "one", [])
    return found


def evaluated(rank: int, folder: Path) -> dict[str, tuple[int, str]]:
    """What ``sede eval`` prints of two runs of one process, by all ranks here."""
    os.environ["SEDE_DATA"] = str(folder / "data")
    found = {}
    for name in ("vse", "scan"):
        said = io.StringIO()
        with redirect_stdout(said):
            status = main(["eval", str(folder / f"{name}-1"), "--json"])
        found[name] = status, said.getvalue() if rank == 0 else ""
    return found


def state_of(out: Path) -> dict[str, Any]:
    """``last.pt`` without what depends on the clock."""
    state = checkpoint.load(out / "last.pt")
    del state["log_bytes"]
    return {**state, "sums": state["sums"][0]}


def lost(rank: int, folder: Path) -> str:
    """A loss that is no number on one rank: what every rank's command returns."""
    os.environ["SEDE_DATA"] = str(folder / "data")
    real = VectorObjective.forward

    def broken(self: VectorObjective, *args: Any, **kwargs: Any) -> Tensor:
        loss = real(self, *args, **kwargs)
        return loss * float("nan") if rank == 1 else loss

    with mock.patch.object(VectorObjective, "forward", broken):
        return str(main(["train", "--out", str(folder / "lost"), *COMMON]))


class Towers(nn.Module):
    """A linear encoder a side and the loss of the batch."""

    def __init__(self, kind: str, ranks: Ranks) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.image, self.text = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
        self.kind = kind
        if kind == "vse":
            self.objective: Any = VectorObjective(TrainConfig(dim=4), 4, ranks)
        else:
            model = Scan(Sizes(5, 3, dim=4), None)
            self.objective = FragmentObjective(TrainConfig(model="scan", dim=4), model, 2, 3, ranks)

    def forward(self, images: Tensor, texts: Tensor, ids: Tensor, rows: Any) -> Tensor:
        image, text = normalize(self.image(images), dim=2), normalize(self.text(texts), dim=2)
        if self.kind == "vse":
            sides = [Encoded(part, None, part[:, 0]) for part in (image, text)]
        else:
            lengths = torch.full((len(text),), 3)
            sides = [Encoded(image[:, :2], None), Encoded(text, lengths)]
        return self.objective(*sides, ids, rows=rows)


def learned(kind: str, ranks: Ranks) -> tuple[list[Tensor], dict[str, int]]:
    """Gradients of two micro batches of 5 and 3 rows, the first under ``no_sync``."""
    towers = Towers(kind, ranks)
    called: nn.Module = DistributedDataParallel(towers) if ranks.world > 1 else towers
    counts = {"all_gather": 0, "reduce_scatter": 0}
    phase = ["forward"]
    real = {name: getattr(dist, name) for name in counts}

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += (name == "all_gather") == (phase[0] == "forward")
            return real[name](*args, **kwargs)

        return call

    with mock.patch.multiple(dist, **{name: counted(name) for name in counts}):
        for turn, count in enumerate((5, 3)):
            torch.manual_seed(10 + turn)
            data = torch.randn(2, count, 3, 5, dtype=torch.float64)
            ids = torch.randint(0, 4, (count,))
            mine = ranks.rows(turn, count)
            waits = ranks.world > 1 and turn == 0
            with called.no_sync() if waits else nullcontext():
                phase[0] = "forward"
                rows = ranks.layout(turn, count)
                loss = called(data[0][mine], data[1][mine], ids[mine], rows)
                phase[0] = "backward"
                loss.backward()
    return [p.grad.clone() for p in towers.parameters()], counts


def exchange(rank: int, folder: Path) -> dict[str, Any]:
    """Gradients beside those of one process, and the collectives of two micro batches."""
    found: dict[str, Any] = {}
    for kind in ("vse", "scan"):
        ours, counts = learned(kind, here())
        truth, _ = learned(kind, Ranks())
        found[kind] = max(map(gap, ours, truth)), counts
    return found


def absent(rank: int, folder: Path) -> str:
    """The second rank skips a step: what the first says when its patience is over."""
    towers = Towers("vse", here())
    data, ids, rows = torch.randn(2, 2, 3, 5).double(), torch.arange(2), here().layout(0, 4)
    store: Any = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["over"], timedelta(seconds=100))
        return "skipped"
    try:
        with guarded(here()):
            towers(*data, ids, rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.set("over", "yes")
    return "nothing"


def files(out: Path) -> set[str]:
    """Names of what is in a run's folder, curves by their kind."""
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    return {name if "tfevents" not in name else "curves" for name in names}


def log(out: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``."""
    found = []
    with suppress(FileNotFoundError):
        found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return found
