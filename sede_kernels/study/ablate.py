"""``sede ablate``: each model with each module on and off, over seeds, restartable.

Every finished run is one line of ``runs.jsonl``; a run whose settings are there already is not
run again. Tables and figure are drawn from those lines.
"""

import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sede_kernels.jsonl import append
from sede_kernels.study.measured import NEEDS, measure
from sede_kernels.study.report import Run, figure, markdown, read_runs, run_of
from sede_kernels.study.search import GRIDS, SEED, best_trial, trial_jobs
from sede_kernels.study.variants import VARIANTS, Job, grid
from sede_kernels.training.data.split import PARTS
from sede_kernels.training.files import (
    UserError,
    remove_leftovers,
    require,
    write_json,
    write_text,
)
from sede_kernels.training.lock import hold
from sede_kernels.training.records import Record, read
from sede_kernels.training.run import Corpus, check_run, load_corpus

# Name, least and most; seeds from SEED on belong to the search.
_BOUNDS = (("seeds", 1, SEED), ("jobs", 1, 1024), ("trials", 1, 10**6), ("keep", 0, SEED))


@dataclass(frozen=True)
class Study:
    """What ``sede ablate`` was asked for.

    Attributes:
        models, variants: names.
        seeds: number of seeds, 0 to seeds - 1.
        out: folder of ``runs.jsonl``, table and figure.
        jobs: runs at a time, one process each.
        trials: of a search, for the base and for each module.
        settings: file of a search's choice, or None.
        flags: training settings given by hand.
        keep: seeds whose run folders stay, for ``sede eval`` and pictures.
    """

    models: tuple[str, ...]
    out: Path
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 5
    jobs: int = 1
    trials: int = 6
    settings: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 1

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value < low:
                raise UserError(f"--{name} must be {low} or more, got {value}.")
            if value > high:
                raise UserError(f"--{name} must be at most {high}, got {value}.")
        for name in ("model", "seed"):
            if name in self.flags:
                raise UserError(f"an ablation sets --{name} itself: use --{name}s.")
        for name, value in (("bank", 0), ("weighting", 0.0), ("erase", "off")):
            if self.flags.get(name) == value:
                raise UserError(
                    f"--{name} {value} would leave a module off in its own variant: "
                    "choose with --variants."
                )
        if self.flags.get("loss") == "hinge" and {"wil", "all"} & set(self.variants):
            raise UserError("the hinge has no weighting: use --variants base,age,lsns.")


def ablate(study: Study) -> list[Run]:
    """Run what is missing of the grid, then write table and figure; all runs on file.

    Raises:
        UserError: settings or data do not fit, or some runs failed (the others are on file).
    """
    chosen = _read_settings(study.settings)
    jobs = grid(study.models, study.variants, range(study.seeds), study.flags, chosen)
    _check_jobs(jobs)
    with _guard(study.out):
        failures = _run_missing(jobs, study.out / "runs.jsonl", study)
        runs = read_runs(_records(study.out / "runs.jsonl"))
        write_report(runs, study.out)
    if failures:
        raise UserError(f"{len(failures)} runs failed, the others are on file: {failures[0]}")
    return runs


def search(study: Study) -> dict[str, Any]:
    """Try settings on dev, the same number for the base and for each module, and write the choice.

    ``variants`` are the parts to search; a part that is not keeps what an earlier search in the
    same folder chose. Trials on file count, so that the next call can try other values.

    Returns:
        What ``settings.json`` holds: by model, the choice of ``base``, ``age``, ``lsns``, ``wil``.
    """
    variants = tuple(dict.fromkeys((*VARIANTS, *study.variants)))
    _check_jobs(grid(study.models, variants, (0,), study.flags, {}))
    parts = [name for name in GRIDS if name in study.variants]
    if not parts:
        raise UserError(f"--search needs one of {', '.join(GRIDS)} in --variants.")
    for model, part in itertools.product(study.models, parts):
        trial_jobs(model, part, study.trials, study.flags, {})  # complains before anything runs
    file = study.out / "settings.json"
    with _guard(study.out):
        earlier = _read_settings(file if file.exists() else None)
        chosen: dict[str, dict[str, Any]] = {**earlier}
        chosen |= {model: dict(earlier.get(model, {})) for model in study.models}
        for part in parts:
            _search_part(study, part, chosen)
            write_json(file, chosen)
    return chosen


def _search_part(study: Study, part: str, chosen: dict[str, dict[str, Any]]) -> None:
    """Try the settings of one part on what the parts before it chose; note the best."""
    path = study.out / "search.jsonl"
    trials = {
        model: trial_jobs(model, part, study.trials, study.flags, chosen[model])
        for model in study.models
    }
    every = [job for jobs in trials.values() for job in jobs]
    failures = _run_missing(every, path, study, keep=0)
    runs = read_runs(_records(path))
    for model, jobs in trials.items():
        try:
            chosen[model][part], done = best_trial(part, jobs, runs)
        except ValueError:
            raise UserError(f"no trial of {model} {part} finished: {failures[0]}") from None
        best = max(run.dev for run in done)
        print(f"{model} {part}: {chosen[model][part]}  dev rSum {best:.1f} of {len(done)}")


@contextmanager
def _guard(out: Path) -> Iterator[None]:
    """The folder of a study for this process alone."""
    with hold(out, "sede ablate"):
        remove_leftovers(out, "table.md", "figure.svg", "settings.json")
        yield


def write_report(runs: Sequence[Run], out: Path) -> None:
    """``table.md`` and ``figure.svg`` of all runs on file."""
    if not runs:
        return
    write_text(out / "table.md", markdown(runs))
    figure(runs, out / "figure.svg")


def _records(path: Path) -> list[Record]:
    records, complaints = read(path, NEEDS, check=run_of)
    for complaint in complaints:
        tqdm.write(complaint, file=sys.stderr)
    return records


def _read_settings(path: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    if path is None:
        return {}
    expected = "a JSON table of models, each with its parts and their settings, as --search writes"
    try:
        chosen: dict[str, dict[str, dict[str, Any]]]
        chosen = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"there is no settings file {path}: `--search` writes one.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): expected {expected}.") from error
    tables = [chosen, *(chosen.values() if isinstance(chosen, dict) else ())]
    tables += [part for table in tables[1:] if isinstance(table, dict) for part in table.values()]
    if not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path} holds something else than expected: {expected}.")
    for name in (name for parts in chosen.values() for name in parts):
        if name not in GRIDS:
            raise UserError(f"{path} has a part {name!r}: expected {', '.join(GRIDS)}.")
    return chosen


def _check_jobs(jobs: Sequence[Job]) -> None:
    """Open the data of all runs and see that this machine can hold each, before any begins."""
    require({"matplotlib": "matplotlib", "tensorboard": "tensorboard"}, "`sede ablate`")
    opened: dict[tuple[str, str], Corpus] = {}
    for job in jobs:
        config = job.config
        key = config.data, config.text_embeddings
        if key not in opened:
            opened[key] = load_corpus(key[0], PARTS, text_embeddings=key[1])
        check_run(config, opened[key])


def _run_missing(
    jobs: Sequence[Job], path: Path, study: Study, *, keep: int | None = None
) -> list[str]:
    """Run what is not on file; one sentence for each run that failed."""
    done = {run.config for run in read_runs(_records(path))}
    missing = [job for job in jobs if job.config not in done]
    keep = study.keep if keep is None else keep
    failures: list[str] = []
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are on file in {path}.")
    finished = (
        _pool(missing, study, keep)
        if min(study.jobs, len(missing)) > 1
        else _here(missing, study, keep)
    )
    with tqdm(total=len(missing), desc="runs", unit="run", disable=None) as bar:
        for job, result in finished:
            bar.update()
            if isinstance(result, UserError):
                failures.append(f"{job.name}: {result}")
                tqdm.write(failures[-1], file=sys.stderr)
                continue
            append(path, result)
            run = read_runs([result])[0]
            tqdm.write(
                f"{job.name}  dev rSum {run.dev:.1f}  test {run.test():.1f}  {run.seconds:.0f} s"
            )
    return failures


def _folder(job: Job, study: Study) -> Path:
    return study.out / "runs" / job.name


def _here(jobs: Sequence[Job], study: Study, keep: int) -> Iterator[tuple[Job, Record | UserError]]:
    """One run after another in this process, with the progress bar of each epoch."""
    for job in jobs:
        try:
            yield (
                job,
                measure(job, _folder(job, study), quiet=False, keep=job.config.seed < keep),
            )
        except UserError as error:
            yield job, error


def _end_with_the_parent() -> None:
    """A killed command leaves no run behind that nobody will file."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pool(jobs: Sequence[Job], study: Study, keep: int) -> Iterator[tuple[Job, Record | UserError]]:
    """Several runs at a time, in processes of their own; ``log.txt`` has what a run printed."""
    context = multiprocessing.get_context("spawn")
    workers = min(study.jobs, len(jobs))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_the_parent)
    waiting: dict[Future[Record], Job] = {}
    try:
        for job in jobs:
            stays = job.config.seed < keep
            waiting[pool.submit(measure, job, _folder(job, study), quiet=True, keep=stays)] = job
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except UserError as error:
                yield waiting[future], error
    except BrokenProcessPool as error:
        raise UserError(
            "a run's process was killed (out of memory?): run the same command again, with fewer "
            "--jobs; finished runs are on file."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
