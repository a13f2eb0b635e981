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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sede_kernels import jsonl
from sede_kernels.momentum import MomentumEncoder
from sede_kernels.training import changes, checkpoint, folder, state
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.curves import Curves, left
from sede_kernels.training.data.batches import Batch, Batches, read_ahead
from sede_kernels.training.evaluate import Retrieval, summarize
from sede_kernels.training.files import UserError, require, write_json, write_text
from sede_kernels.training.limits import check_backend, enough_memory
from sede_kernels.training.models import Encoded, FragmentModel
from sede_kernels.training.objective import (
    FragmentObjective,
    Objective,
    Pair,
    VectorObjective,
)
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
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.epoch = self.batch = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.began, self.waited = 0.0, 0.0  # of this epoch, in this process
        self.best = {"rsum": -1.0, "epoch": -1.0}
        self.log: list[Record] = []
        self.kept = 0  # step of the newest checkpoint
        self.interrupted = False
        self.curves: Curves | None = None
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.first_step, self.first_seconds = 0, 0.0  # where this process began

    def _objective(self, regions: int) -> Objective:
        if not isinstance(self.model, FragmentModel):
            return VectorObjective(self.config, self.config.dim)
        return FragmentObjective(self.config, self.model, regions, self.corpus.longest)

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.train_part.captions) / self.config.batch_size)

    def run(self) -> Retrieval:
        """Train from the present place to the end, then score test with the best epoch."""
        from torch.utils.tensorboard import SummaryWriter

        previous = signal.signal(signal.SIGINT, self._interrupt)
        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
        self.curves = Curves(writer)
        self.first_step, self.first_seconds = self.step, self.seconds
        try:
            while self.epoch < self.config.epochs and not self._gave_up():
                self._train_epoch()
                self._finish_epoch(writer)
        finally:
            writer.close()
            signal.signal(signal.SIGINT, previous)
        return self._score_test()

    def _gave_up(self) -> bool:
        patience = self.config.patience
        return patience > 0 and self.epoch - 1 - self.best["epoch"] >= patience

    def _left(self) -> str:
        """Time to the last epoch, as this process has gone so far."""
        done, total = self.step - self.first_step, self.config.epochs * self.batches
        return left(self.seconds - self.first_seconds, done, total - self.first_step)

    def _train_epoch(self) -> None:
        self.began, self.waited = self.seconds, 0.0
        self.model.train()
        order = np.random.default_rng([self.config.seed, self.epoch]).permutation(
            len(self.train_part.captions)
        )
        config = self.config
        words = self.corpus.words["train"]
        batches = Batches(self.train_part, words, order, config.batch_size)
        ahead = read_ahead(batches, self.batch, config.workers, config.device)
        title = f"{self.config.title} epoch {self.epoch + 1}/{self.config.epochs}"
        with tqdm(total=self.batches, initial=self.batch, desc=title, disable=None) as bar:
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
                if self.interrupted or (
                    self.batch % self.config.checkpoint_every == 0 and self.batch < self.batches
                ):
                    self.save()
                if self.interrupted:
                    raise StoppedError

    def batch_of(self, captions: np.ndarray[Any, Any]) -> Batch:
        """These captions of the training part and their images, on the device."""
        words = self.corpus.words["train"]
        return Batches(self.train_part, words, captions, len(captions))[0].to(self.config.device)

    def train_step(self, batch: Batch) -> float:
        """One update; returns the loss."""
        config = self.config
        regions, *text, ids = batch
        encoders = self.model.image_encoder, self.model.text_encoder
        for slow, encoder in zip(self.momentum, encoders, strict=False):
            slow.update(encoder)
        images, texts = encoders[0](regions), encoders[1](*text)
        keys: Pair | None = None
        count = max(1, round(config.bank_share * len(ids)))
        # Momentum keys cost a forward pass: none before the steps that fill the banks.
        if config.bank and self.step >= config.bank_start - math.ceil(config.bank / count):
            keys = images.first(count).detach(), texts.first(count).detach()
            if self.momentum:
                keys = self._momentum_keys(regions[:count], [_first(t, count) for t in text])
        warm = self.step >= config.bank_start
        loss = self._loss(images, texts, ids, keys if warm else None)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value} in epoch {self.epoch + 1}, step {self.batch + 1}: "
                "lower --lr or raise --temperature."
            )
        for group in self.optimizer.param_groups:
            done = self.step / (config.epochs * self.batches)
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.grad_clip
        )
        self.optimizer.step()
        if keys is not None:
            self.objective.enqueue(keys, ids[:count])
        return value

    def _momentum_keys(self, regions: Tensor, text: list[Tensor | None]) -> Pair:
        with torch.autocast(regions.device.type, torch.bfloat16, self.bf16_keys):
            return _float(self.momentum[0](regions)), _float(self.momentum[1](*text))

    def _loss(self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair | None) -> Tensor:
        loss: Tensor = self.objective(images, captions, ids)
        if keys is not None:
            count = len(keys[0].fragments)
            loss = loss + self.config.bank_weight * self.objective(
                images.first(count), captions.first(count), ids[:count], keys
            )
        erasing = self.model.erasing
        if erasing is not None and erasing.how == "second":
            second = self.objective(self.model.erased(images), captions, ids, erased=True)
            loss = loss + self.config.erase_weight * second
        return loss

    def _finish_epoch(self, writer: Any) -> None:
        """Score dev, keep the best model, write the log line and the checkpoint."""
        dev = summarize(
            compare_part(self.model, self.corpus.parts["dev"], self.corpus.words["dev"]),
            self.corpus.parts["dev"].pairs,
        )
        loss = self.loss_sum / self.batches
        if dev.rsum > self.best["rsum"]:
            self.best = {"rsum": dev.rsum, "epoch": float(self.epoch)}
            facts = {**self.sizes, "words": self.corpus.vocabulary.digest}
            checkpoint.save(self.out / "best.pt", {"model": self.model.state_dict(), **facts})
        record: Record = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": loss,
            "dev": dev.as_dict(),
            "best": self.best["epoch"] == self.epoch,
            "train_seconds": round(self.seconds, 3),
        }
        jsonl.append(self.out / "metrics.jsonl", record)
        self.log.append(record)
        waiting = 100.0 * self.waited / max(self.seconds - self.began, 1e-9)
        writer.add_scalar("train/loss", loss, self.step)
        writer.add_scalar("train/waiting_percent", waiting, self.step)
        writer.add_scalar("dev/rsum", dev.rsum, self.step)
        for way, recalls in (("i2t", dev.image_to_text), ("t2i", dev.text_to_image)):
            for cutoff, recall in zip((1, 5, 10), recalls, strict=True):
                writer.add_scalar(f"dev/{way}_r{cutoff}", recall, self.step)
        rest = self._left()
        tqdm.write(
            f"{self.config.title}  epoch {self.epoch + 1:2d}/{self.config.epochs}  "
            f"loss {loss:.3f}  dev rSum {dev.rsum:.1f}  {self.seconds:.0f} s, "
            f"{waiting:.0f} % of it waiting for data" + (f", {rest}" if rest else "")
        )
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0
        self.save()

    def _score_test(self) -> Retrieval:
        _, model, _ = load_best(self.out)
        part = self.corpus.parts["test"]
        scores = compare_part(model, part, self.corpus.words["test"], progress=True)
        test = summarize(scores, part.pairs)
        facts = {"test": test.as_dict(), "best_epoch": int(self.best["epoch"])}
        facts |= {"dev_rsum": self.best["rsum"], "train_seconds": round(self.seconds, 3)}
        write_json(self.out / "test.json", facts)
        return test

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:  # a second Ctrl-C does not wait for the step
            raise KeyboardInterrupt
        self.interrupted = True

    def save(self) -> None:
        """Write ``last.pt``: all that the run needs to go on, see :mod:`.state`."""
        checkpoint.save(self.out / "last.pt", state.snapshot(self))
        self.kept = self.step

    def restore(self, given: Collection[str] = ()) -> dict[str, list[Any]]:
        """Go back to ``last.pt``, the log included; see :func:`.state.restore`.

        Raises:
            UserError: a file of the run is missing or damaged, or settings or data have changed.
        """
        return state.restore(self, given)


def _first(rows: Tensor | None, count: int) -> Tensor | None:
    return None if rows is None else rows[:count]


def _float(keys: Encoded) -> Encoded:
    vector = None if keys.vector is None else keys.vector.float()
    return keys._replace(fragments=keys.fragments.float(), vector=vector)


def train(config: TrainConfig, out: Path) -> Retrieval:
    """Start a run in a new folder and take it to the end.

    Settings, data, memory and backend are checked before anything is written. A run that fails
    before its first checkpoint leaves nothing behind.

    Raises:
        UserError: the folder holds a run already or is in use, or data or settings do not fit.
        StoppedError: Ctrl-C; ``last.pt`` has the place.
    """
    task = "sede train"
    if out.exists():
        with folder.guard(out, task):
            folder.make_room(out)
    with enough_memory():
        trainer = Trainer(config, out)
        with folder.guard(out, task):
            folder.make_room(out)
            try:
                write_text(out / "vocab.json", trainer.corpus.vocabulary.to_json())
                trainer.save()
                write_text(out / "config.json", config.to_json())
                return trainer.run()
            except StoppedError:
                raise
            except BaseException:
                if not trainer.kept:  # nothing to go on from
                    folder.remove(out)
                raise


def resume(out: Path, settings: Mapping[str, Any] | None = None) -> Retrieval:
    """Take a run from its last checkpoint to the end, as if it had never stopped.

    Args:
        out: the run's folder.
        settings: to change from here on, those of :mod:`.changes`; None for none.

    Raises:
        UserError: no run there or it is in use, a damaged file, or settings or data changed.
        StoppedError: Ctrl-C.
    """
    given = dict(settings or {})
    changes.check_flags(given)
    read_config(out)  # before a folder that is no run is touched
    with enough_memory(), folder.guard(out, "sede train --resume"):
        config = replace(read_config(out), **given)
        trainer = Trainer(config, out)
        changed = trainer.restore(given)
        if given:
            changes.note(out, config, trainer.step, changed)
        return trainer.run()
