"""The reference training loop.

One step, in this order: momentum encoders follow the model, the model encodes the batch and they
encode a share of it as keys, the loss looks at the batch and into the banks, the model learns, the
keys enter the banks. With ``bank_keys = "online"`` keys are the model's own encodings, detached.
The epoch that retrieves best on dev is kept; test is scored once, at the end, with that epoch.
"""

import math
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sede_kernels import jsonl
from sede_kernels.momentum import MomentumEncoder
from sede_kernels.training import changes, checkpoint, folder, state
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.curves import Curves, epoch_points, left
from sede_kernels.training.data.batches import Batch, Batches, read_ahead
from sede_kernels.training.directions import Objective
from sede_kernels.training.evaluate import Retrieval, summarize
from sede_kernels.training.files import UserError, require, write_json, write_text
from sede_kernels.training.limits import check_backend, enough_memory
from sede_kernels.training.models import FragmentModel
from sede_kernels.training.objective import FragmentObjective, VectorObjective
from sede_kernels.training.ranks import Ranks, here
from sede_kernels.training.records import Record
from sede_kernels.training.run import (
    Corpus,
    build_model,
    check_run,
    load_best,
    load_corpus,
    multiplies_bf16,
    read_config,
)
from sede_kernels.training.similarities import compare_part
from sede_kernels.training.step import Step, build


class StoppedError(Exception):
    """Ctrl-C: the step was finished and a checkpoint written."""


class Trainer:
    """One run: model, momentum encoders, banks, optimiser and place in the data.

    Args:
        config: settings.
        out: the run's folder.
    """

    def __init__(self, config: TrainConfig, out: Path) -> None:
        require({"tensorboard": "tensorboard", "tqdm": "tqdm"}, "`sede train`")
        check_backend()
        folder.check_name(out)
        self.config, self.out = config, out
        self.ranks: Ranks = here()
        self.corpus: Corpus = load_corpus(
            config.data, ("train", "dev", "test"), text_embeddings=config.text_embeddings
        )
        self.train_part = self.corpus.parts["train"]
        regions, features = self.train_part.features.shape[1:]
        sentences = self.train_part.sentences
        width = 0 if sentences is None else sentences.shape[1]
        self.sizes = {"features": features, "sentence": width}
        check_run(config, self.corpus)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = build_model(config, features, len(self.corpus.vocabulary), width)
        self.objective = self._objective(regions).to(config.device)
        # Momentum encoders only feed banks; without such banks there is nothing to pay for.
        self.momentum = [
            MomentumEncoder(encoder, config.momentum)
            for encoder in (self.model.image_encoder, self.model.text_encoder)
            if config.bank and config.bank_keys == "momentum"
        ]
        for encoder in self.momentum:
            encoder.eval()  # keys without dropout
        self.bf16_keys = multiplies_bf16(config.device)
        self.forward: nn.Module = build(
            Step(self.model, self.objective, self.momentum, config, self.bf16_keys), self.ranks
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.epoch = self.batch = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.began, self.waited = 0.0, 0.0  # of this epoch, in this process
        self.waited_before = 0.0  # in this process
        self.best = {"rsum": -1.0, "epoch": -1.0}
        self.log: list[Record] = []
        self.kept = 0  # step of the newest checkpoint
        self.interrupted = self.stops = False
        self.curves: Curves | None = None
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.first_step, self.first_seconds = 0, 0.0  # where this process began
        self.ranks.seed(config.seed)

    def _objective(self, regions: int) -> Objective:
        if not isinstance(self.model, FragmentModel):
            return VectorObjective(self.config, self.config.dim, self.ranks)
        longest = self.corpus.longest
        return FragmentObjective(self.config, self.model, regions, longest, self.ranks)

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.train_part.captions) / self.config.batch_size)

    def run(self) -> Retrieval:
        """Train from the present place to the end, then score test with the best epoch."""
        from torch.utils.tensorboard import SummaryWriter

        # torchrun passes Ctrl-C on as SIGTERM, and schedulers send it before they kill.
        kinds = (signal.SIGINT, signal.SIGTERM)
        previous = [(kind, signal.signal(kind, self._interrupt)) for kind in kinds]
        writer = None
        if self.ranks.first:
            writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
            self.curves = Curves(writer)
        self.first_step, self.first_seconds = self.step, self.seconds
        try:
            while self.epoch < self.config.epochs and not self._gave_up():
                self._train_epoch()
                self._finish_epoch(writer)
        finally:
            if writer is not None:
                writer.close()
            for kind, handler in previous:
                signal.signal(kind, handler)
        return self._score_test()

    def _gave_up(self) -> bool:
        patience = self.config.patience
        return patience > 0 and self.epoch - 1 - self.best["epoch"] >= patience

    def _left(self) -> str:
        """Time to the last epoch, as this process has gone so far."""
        done, total = self.step - self.first_step, self.config.epochs * self.batches
        return left(self.seconds - self.first_seconds, done, total - self.first_step)

    def _train_epoch(self) -> None:
        self.waited_before += self.waited
        self.began, self.waited = self.seconds, 0.0
        self.model.train()
        order = np.random.default_rng([self.config.seed, self.epoch]).permutation(
            len(self.train_part.captions)
        )
        config = self.config
        words = self.corpus.words["train"]
        batches = Batches(
            self.train_part, words, order, config.batch_size, self.ranks, self.epoch * len(order)
        )
        ahead = read_ahead(batches, self.batch, config.workers, config.device)
        title = f"{self.config.title} epoch {self.epoch + 1}/{self.config.epochs}"
        hide = None if self.ranks.first else True
        with tqdm(total=self.batches, initial=self.batch, desc=title, disable=hide) as bar:
            while self.batch < self.batches:
                started = time.perf_counter()
                batch = next(ahead)
                self.waited += time.perf_counter() - started
                loss = self.train_step(batch)
                self.seconds += time.perf_counter() - started
                self.loss_sum += loss
                self.batch += 1
                self.step += 1
                bar.update()
                mean = f"{self.loss_sum / self.batch:.3f}"
                bar.set_postfix_str(f"loss={mean}, {self._left()}", refresh=False)
                if self.curves is not None:
                    if bar.disable and self.curves.due():
                        print(f"{title}, {self.batch}/{self.batches}: loss {mean}, {self._left()}")
                    self.curves.step(
                        self.step,
                        loss,
                        rate=self.optimizer.param_groups[0]["lr"],
                        temperature=config.temperature,
                        norm=self.gradient_norm,
                        objective=self.objective,
                    )
                stops = self.stops if self.ranks.world > 1 else self.interrupted
                if stops or (
                    self.batch % self.config.checkpoint_every == 0 and self.batch < self.batches
                ):
                    self.save()
                if stops:
                    raise StoppedError

    def batch_of(self, captions: np.ndarray[Any, Any]) -> Batch:
        """These captions of the training part and their images, on the device."""
        words = self.corpus.words["train"]
        return Batches(self.train_part, words, captions, len(captions))[0].to(self.config.device)

    def _layout(self, rows: int) -> tuple[int, int]:
        """Of the batch of all ranks: the place of its first row in the run, and its rows."""
        if self.ranks.world == 1:
            return 0, rows
        captions, size = len(self.train_part.captions), self.config.batch_size
        first = self.batch * size
        return self.epoch * captions + first, min(size, captions - first)

    def train_step(self, batch: Batch) -> float:
        """One update with this rank's part of a batch; returns the loss of the whole batch."""
        config = self.config
        for slow, encoder in zip(
            self.momentum, (self.model.image_encoder, self.model.text_encoder), strict=False
        ):
            slow.update(encoder)
        start, rows = self._layout(len(batch.ids))
        count = max(1, round(config.bank_share * rows))
        # Momentum keys cost a forward pass: none before the steps that fill the banks.
        fills = config.bank and self.step >= config.bank_start - math.ceil(config.bank / count)
        key_rows = self.ranks.layout(start, count) if fills else None
        loss, keys = self.forward(
            batch, self.ranks.layout(start, rows), key_rows, self.step >= config.bank_start
        )
        value, stops = self.ranks.mean(float(loss.detach()), float(self.interrupted))
        self.stops = stops > 0  # all ranks after the same step
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value} in epoch {self.epoch + 1}, step {self.batch + 1}: "
                "lower --lr or raise --temperature."
            )
        for group in self.optimizer.param_groups:
            done = self.step / (config.epochs * self.batches)
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.grad_clip
        )
        self.optimizer.step()
        if keys is not None:
            self.objective.enqueue(keys, batch.ids[: len(keys[0].fragments)])
        return value

    def _finish_epoch(self, writer: Any) -> None:
        """Score dev, keep the best model, write the log line and the checkpoint."""
        self.ranks.share_buffers(self.model)
        group, part = self.ranks.group, self.corpus.parts["dev"]
        scores = compare_part(self.model, part, self.corpus.words["dev"], group=group)
        dev = summarize(scores, part.pairs, group=group)
        if dev.rsum > self.best["rsum"]:
            self.best = {"rsum": dev.rsum, "epoch": float(self.epoch)}
            self._keep_best()
        waiting = 100.0 * self.waited / max(self.seconds - self.began, 1e-9)
        record: Record = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.loss_sum / self.batches,
            "dev": dev.as_dict(),
            "best": self.best["epoch"] == self.epoch,
            "train_seconds": round(self.seconds, 3),
        }
        self.log.append(record)
        if writer is not None:
            jsonl.append(self.out / "metrics.jsonl", record)
            epoch_points(writer, record, waiting)
        rest = self._left()
        if self.ranks.first:
            tqdm.write(
                f"{self.config.title}  epoch {self.epoch + 1:2d}/{self.config.epochs}  "
                f"loss {record['loss']:.3f}  dev rSum {dev.rsum:.1f}  {self.seconds:.0f} s, "
                f"{waiting:.0f} % of it waiting for data" + (f", {rest}" if rest else "")
            )
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0
        self.save()

    def _keep_best(self) -> None:
        if self.ranks.first:
            facts = {**self.sizes, "words": self.corpus.vocabulary.digest}
            checkpoint.save(self.out / "best.pt", {"model": self.model.state_dict(), **facts})

    def _score_test(self) -> Retrieval:
        self.ranks.wait()  # until best.pt is there
        _, model, _ = load_best(self.out)
        group, part = self.ranks.group, self.corpus.parts["test"]
        words = self.corpus.words["test"]
        scores = compare_part(model, part, words, progress=self.ranks.first, group=group)
        test = summarize(scores, part.pairs, group=group)
        facts = {"test": test.as_dict(), "best_epoch": int(self.best["epoch"])}
        facts |= {"dev_rsum": self.best["rsum"], "train_seconds": round(self.seconds, 3)}
        trained = self.seconds - self.first_seconds
        if trained:  # of the time that this process trained
            waited = self.waited_before + self.waited
            facts["waiting_percent"] = round(100.0 * waited / trained, 2)
        if self.ranks.first:
            write_json(self.out / "test.json", facts)
        return test

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:  # a second Ctrl-C does not wait for the step
            raise KeyboardInterrupt
        self.interrupted = True

    def save(self) -> None:
        """Write ``last.pt``: all that the run needs to go on, see :mod:`.state`."""
        found = state.snapshot(self)
        if self.ranks.first:
            checkpoint.save(self.out / "last.pt", found)
        self.kept = self.step

    def restore(self, given: Collection[str] = ()) -> dict[str, list[Any]]:
        """Go back to ``last.pt``, the log included; see :func:`.state.restore`.

        Raises:
            UserError: a file of the run is missing or damaged, or settings or data have changed.
        """
        return state.restore(self, given)


def train(config: TrainConfig, out: Path) -> Retrieval:
    """Start a run in a new folder and take it to the end.

    Settings, data, memory and backend are checked before anything is written. A run that fails
    before its first checkpoint leaves nothing behind.

    Raises:
        UserError: the folder holds a run already or is in use, or data or settings do not fit.
        StoppedError: Ctrl-C; ``last.pt`` has the place.
    """
    task = "sede train"
    ranks = here()
    if ranks.first and out.exists():
        with folder.guard(out, task):
            folder.make_room(out)
    with enough_memory():
        trainer = Trainer(config, out)
        with folder.guard(out, task) if ranks.first else nullcontext():
            if ranks.first:
                folder.make_room(out)
            try:
                if ranks.first:
                    write_text(out / "vocab.json", trainer.corpus.vocabulary.to_json())
                trainer.save()
                if ranks.first:
                    write_text(out / "config.json", config.to_json())
                return trainer.run()
            except StoppedError:
                raise
            except BaseException:
                if ranks.first and not trainer.kept:  # nothing to go on from
                    folder.remove(out)
                raise


def resume(out: Path, settings: Mapping[str, Any] | None = None) -> Retrieval:
    """Take a run from its last checkpoint to the end, as if it had never stopped.

    On several ranks the checkpoint may come from another number of them.

    Args:
        out: the run's folder; every rank reads it.
        settings: to change from here on, those of :mod:`.changes`; None for none.

    Raises:
        UserError: no run there or it is in use, a damaged file, or settings or data changed.
        StoppedError: Ctrl-C.
    """
    given = dict(settings or {})
    changes.check_flags(given)
    read_config(out)  # before a folder that is no run is touched
    ranks = here()
    held = folder.guard(out, "sede train --resume") if ranks.first else nullcontext()
    with enough_memory(), held:
        config = replace(read_config(out), **given)
        trainer = Trainer(config, out)
        changed = trainer.restore(given)
        ranks.wait()  # until all have read what rank 0 will write
        if given and ranks.first:
            changes.note(out, config, trainer.step, changed)
        return trainer.run()
