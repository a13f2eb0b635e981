"""One run of an ablation: train, and tell in one record all that its tables and text need."""

import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sede_kernels import __version__
from sede_kernels.info import cpu_model
from sede_kernels.study.variants import Job
from sede_kernels.training.analysis import analyse
from sede_kernels.training.evaluate import summarize
from sede_kernels.training.files import write_text
from sede_kernels.training.folder import empty
from sede_kernels.training.limits import enough_memory
from sede_kernels.training.lock import hold
from sede_kernels.training.loop import Trainer
from sede_kernels.training.records import Record
from sede_kernels.training.run import load_best
from sede_kernels.training.similarities import compare_part

NEEDS = ("variant", "config", "epochs")
_ORPHAN_S = 10.0  # a run of a killed command ends in less


class CurveTrainer(Trainer):
    """Notes, besides dev, the processor time of each epoch and the test scores it would leave.

    Test is scored for the epochs that were best on dev when they ended and for the last one, since
    a column of equal time stops each run elsewhere; no test score chooses anything.
    """

    def __init__(self, job: Job, out: Path) -> None:
        super().__init__(job.config, out)
        self.cpu_seconds = 0.0
        self.curve: list[Record] = []

    def _train_epoch(self) -> None:
        started = time.process_time()
        super()._train_epoch()
        self.cpu_seconds += time.process_time() - started

    def _finish_epoch(self, writer: Any) -> None:
        super()._finish_epoch(writer)
        epoch = self.epoch - 1
        dev = self.log[-1]["dev"]
        point: Record = {"dev": dev["rsum"], "cpu_s": round(self.cpu_seconds, 2)}
        point["wall_s"] = round(self.seconds, 2)
        if self.best["epoch"] == epoch or self.epoch == self.config.epochs or self._gave_up():
            part = self.corpus.parts["test"]
            test = summarize(compare_part(self.model, part, self.corpus.words["test"]), part.pairs)
            point |= {"test": test.rsum, "test_i2t": list(test.image_to_text)}
            point |= {"test_t2i": list(test.text_to_image)}
        self.curve.append(point)


@contextmanager
def _quiet(log: Path | None) -> Iterator[None]:
    """Send what is printed to a file: progress bars of several processes cannot share a screen."""
    if log is None:
        yield
        return
    with open(log, "w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def measure(job: Job, folder: Path, *, quiet: bool, keep: bool) -> Record:
    """Train one run from the start.

    Args:
        job: variant and settings.
        folder: of the run; what a killed attempt left there is deleted.
        quiet: print to ``folder/log.txt``.
        keep: leave the folder, for ``sede eval`` and pictures; else it is deleted.

    Returns:
        ``variant``, the whole ``config``, ``epochs`` (dev, times, test where noted),
        ``analysis``, ``versions``, ``processor``.

    Raises:
        UserError: data or settings do not fit, or the loss became infinite.
        StoppedError: Ctrl-C.
    """
    with hold(folder, "sede ablate", wait_s=_ORPHAN_S), enough_memory():
        empty(folder)
        with _quiet(folder / "log.txt" if quiet else None):
            trainer = CurveTrainer(job, folder)
            write_text(folder / "vocab.json", trainer.corpus.vocabulary.to_json())
            write_text(folder / "config.json", job.config.to_json())
            trainer.run()
            _, model, _ = load_best(folder)
            analysis = analyse(model, job.config, trainer.corpus)
        if keep:
            (folder / "last.pt").unlink(missing_ok=True)  # banks and optimiser; the run is over
        else:
            shutil.rmtree(folder)
    return {
        "variant": job.variant,
        "config": asdict(job.config),
        "epochs": trainer.curve,
        "analysis": analysis,
        "versions": {
            "sede_kernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "processor": cpu_model(),
    }
