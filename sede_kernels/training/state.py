"""What ``last.pt`` holds, and how a run takes it back."""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sede_kernels.resharding import unsharded, whole_state
from sede_kernels.training import changes, checkpoint
from sede_kernels.training.data.text import Vocabulary
from sede_kernels.training.files import UserError
from sede_kernels.training.records import Record, put_back, read

if TYPE_CHECKING:
    from sede_kernels.training.loop import Trainer

_NEEDS = ("model", "momentum", "objective", "optimizer", "rng", "place", "sums", "best", "data")


def snapshot(run: "Trainer") -> dict[str, Any]:
    """Model, momentum encoders, banks, optimiser, generators, place, settings and log.

    Every rank calls it alike; what it returns is whole on each of them.
    """
    generators = run.ranks.every(checkpoint.rng_state())
    log = run.out / "metrics.jsonl"
    return {
        "model": run.model.state_dict(),
        "momentum": [encoder.state_dict() for encoder in run.momentum],
        "objective": whole_state(run.objective),
        "optimizer": run.optimizer.state_dict(),
        "rng": generators[0],
        **({"rng_of_ranks": generators} if run.ranks.world > 1 else {}),
        "place": [run.epoch, run.batch, run.step],
        # Whatever depends on the clock is in one place: the rest is the same in every run.
        "sums": [run.loss_sum, run.seconds, *(line["train_seconds"] for line in run.log)],
        "best": run.best,
        "log": [{k: v for k, v in line.items() if k != "train_seconds"} for line in run.log],
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "data": facts(run),
        "config": asdict(run.config),
    }


def facts(run: "Trainer") -> dict[str, list[int]]:
    """Images, captions and words of each part: other data than these are noticed."""
    return {
        name: [len(part.rows), len(part.captions), len(run.corpus.vocabulary)]
        for name, part in run.corpus.parts.items()
    }


def restore(run: "Trainer", given: Collection[str] = ()) -> dict[str, list[Any]]:
    """Go back to ``last.pt``, the log included; nothing is written before all of it fits.

    Args:
        run: built by the settings to go on with.
        given: names of settings that were given by hand, and so may differ.

    Returns:
        What :func:`.changes.compare` does.

    Raises:
        UserError: a file of the run is missing or damaged, or settings or data have changed.
    """
    path = run.out / "last.pt"
    state = checkpoint.load(path, _NEEDS)
    changed = changes.compare(path, state.get("config") or {}, run.config, given)
    _check_data(run, path, state["data"])
    checkpoint.fill(run.model, state["model"], path, "model")
    if len(state["momentum"]) != len(run.momentum):
        detail = f"{len(state['momentum'])} momentum encoders, not {len(run.momentum)}"
        raise UserError(checkpoint.misfit(path, detail))
    for encoder, values in zip(run.momentum, state["momentum"], strict=True):
        checkpoint.fill(encoder, values, path, "momentum encoder")
    banks = state["objective"]
    if run.ranks.world == 1 and isinstance(banks, Mapping):
        banks = _whole_banks(banks, path)
    checkpoint.fill(run.objective, banks, path, "banks")
    try:
        run.optimizer.load_state_dict(state["optimizer"])
        for group in run.optimizer.param_groups:
            group["weight_decay"] = run.config.weight_decay
        run.epoch, run.batch, run.step = (int(place) for place in state["place"])
        run.loss_sum, run.seconds, *times = (float(value) for value in state["sums"])
        run.best = {name: float(state["best"][name]) for name in ("rsum", "epoch")}
        log = None if "log" not in state else _with_times(state["log"], times)
        _set_generators(run, state)
    except Exception as error:  # of any kind: the entries may be anything
        detail = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(checkpoint.misfit(path, detail[:160])) from error
    if run.best["epoch"] >= 0:
        _check_best(run)
    if run.ranks.first:
        _restore_log(run, log)
    else:
        run.log = log or []
    run.kept = run.step
    return changed


def _whole_banks(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What several ranks saved, for one."""
    try:
        return unsharded(values)
    except Exception as error:  # of any kind: the values may be anything
        raise UserError(checkpoint.misfit(path, f"banks: {type(error).__name__}")) from error


def _set_generators(run: "Trainer", state: Mapping[str, Any]) -> None:
    """Each rank its own generator; another number of ranks begins new ones, but for rank 0."""
    saved, ranks = state.get("rng_of_ranks", [state["rng"]]), run.ranks
    if len(saved) == ranks.world or ranks.first:
        checkpoint.set_rng_state(saved[ranks.rank])
    else:
        ranks.seed(run.config.seed, run.step)


def _check_data(run: "Trainer", path: Path, trained_on: object) -> None:
    if trained_on != facts(run):
        raise UserError(
            f"{path} was trained on other data than {run.corpus.folder} holds now "
            f"({trained_on}, not {facts(run)}): restore it, or start a new run."
        )
    words = Vocabulary.load(run.out / "vocab.json").words
    if words != run.corpus.vocabulary.words:
        raise UserError(
            f"{run.out / 'vocab.json'} numbers other words than {run.corpus.folder}: put the data "
            "back that the run began with, or start a new run."
        )


def _check_best(run: "Trainer") -> None:
    """The best model so far is needed at the end: better to know now that it is gone."""
    path = run.out / "best.pt"
    best = checkpoint.load(path, ("model", "features"))
    mine = run.model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in mine.items()}
    if {n: tuple(getattr(v, "shape", ())) for n, v in dict(best["model"]).items()} != shapes:
        raise UserError(checkpoint.misfit(path, "its model has other sizes"))


def _with_times(lines: list[Record], times: list[float]) -> list[Record]:
    return [{**line, "train_seconds": time} for line, time in zip(lines, times, strict=True)]


def _restore_log(run: "Trainer", log: list[Record] | None) -> None:
    """Let ``metrics.jsonl`` hold the finished epochs, as the checkpoint knows them.

    Version 0.1.0 kept no copy of the log: then what is readable of it stays.
    """
    path = run.out / "metrics.jsonl"
    lost: list[str] = []
    if log is None:
        lines = read(path, ("epoch", "train_seconds"))[0]
        known = {line["epoch"]: line for line in lines if isinstance(line["epoch"], int)}
        log = [known[epoch] for epoch in range(run.epoch) if epoch in known]
        lost = [str(epoch + 1) for epoch in range(run.epoch) if epoch not in known]
    run.log = log
    complaint = put_back(path, "".join(json.dumps(line) + "\n" for line in log))
    if lost:
        complaint = f"{path} has no readable line of epoch {', '.join(lost)}; it goes on without."
    if complaint:
        tqdm.write(complaint, file=sys.stderr)
