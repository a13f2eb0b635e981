"""``sede bench modules``: what the three modules cost in a training step of each model.

The trainers of all variants take the same steps in turn on real data, with full banks; a step's
time is the processor's on a CPU and the clock's on a GPU, and its ratio is to the base's step with
the same captions. Ratios are medians, so that another program's burst does not count.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sede_kernels.training.models import MODELS
from sede_kernels.whole_file import write_text

from . import flags, machine, measured
from .operations.steps import fill_banks

_BANK = {"bank": 2048, "weighting": 5.0}
_ALL = {**_BANK, "erase": "low"}

#: Name -> settings of the trainer.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "bank + weighting, online keys": {**_BANK, "bank_keys": "online"},
    "bank + weighting, momentum keys": {**_BANK, "bank_keys": "momentum"},
    "all three, online keys": {**_ALL, "bank_keys": "online"},
    "all three, momentum keys": {**_ALL, "bank_keys": "momentum"},
}


@dataclass(frozen=True)
class Steps:
    """Steps of one variant: milliseconds, and each over the base's beside it."""

    milliseconds: list[float]
    ratios: list[float]


def check(
    models: Sequence[str], batches: Sequence[int], *, data: str, device: str, dim: int
) -> None:
    """Refuse what one of the trainers would refuse, before the first of them is built.

    Raises:
        ValueError: settings, data, device or memory; one sentence.
    """
    from sede_kernels.training.files import UserError, require

    try:
        require({"tqdm": "tqdm", "tensorboard": "tensorboard"}, "`sede bench modules`")
        from sede_kernels.training.config import TrainConfig
        from sede_kernels.training.run import check_run, load_corpus

        settings = [
            TrainConfig(data=data, device=device, model=model, batch_size=batch, dim=dim, **more)
            for model in models
            for batch in batches
            for more in VARIANTS.values()
        ]
        corpus = load_corpus(data, ("train", "dev", "test"))
        for one in settings:
            check_run(one, corpus)
    except UserError as error:
        raise ValueError(str(error).rstrip(".")) from error


def _trainer(data: str, folder: Path, device: str, **settings: Any) -> Any:
    from sede_kernels.training.config import TrainConfig
    from sede_kernels.training.files import UserError
    from sede_kernels.training.loop import Trainer

    try:
        trainer = Trainer(TrainConfig(data=data, dropout=0.1, device=device, **settings), folder)
    except UserError as error:
        raise ValueError(error) from error
    trainer.model.train()
    fill_banks(trainer.objective, torch.Generator().manual_seed(0))
    return trainer


def _timed(trainer: Any, captions: "np.ndarray[Any, Any]") -> float:
    on_gpu = trainer.config.device != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    started = clock()
    trainer.train_step(trainer.batch_of(captions))
    if on_gpu:
        torch.cuda.synchronize()
    trainer.step += 1
    return 1e3 * (clock() - started)


def measure(
    model: str, batch: int, *, data: str, steps: int, device: str, dim: int = 0
) -> dict[str, Steps]:
    """Steps of every variant of one model, taken in turn."""
    with tempfile.TemporaryDirectory(prefix="sede-bench-") as folder:
        trainers = {
            name: _trainer(
                data,
                Path(folder) / str(number),
                device,
                model=model,
                batch_size=batch,
                dim=dim,
                **settings,
            )
            for number, (name, settings) in enumerate(VARIANTS.items())
        }
        rng = np.random.default_rng(0)
        captions = len(trainers["base"].train_part.captions)
        taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for turn in range(steps + 2):
            drawn = rng.integers(0, captions, batch)
            for name, trainer in trainers.items():
                milliseconds = _timed(trainer, drawn)
                if turn >= 2:  # the first ones allocate
                    taken[name].append(milliseconds)
    base = taken["base"]
    return {
        name: Steps(values, [v / b for v, b in zip(values, base, strict=True)])
        for name, values in taken.items()
    }


def markdown(cases: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of a step, and in brackets over the base's; a row a model and batch."""
    names = list(VARIANTS)
    lines = [f"| model, batch | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for case in cases:
        cells = [f"{case['steps'][names[0]]['ms']:.1f}"]
        cells += [
            f"{found['ms']:.1f} ({found['ratio']:.2f})"
            for found in (case["steps"][name] for name in names[1:])
        ]
        lines.append(f"| `{case['model']}` {case['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sede bench modules", description=__doc__)
    parser.add_argument(
        "--models",
        type=flags.names(MODELS),
        default="vse,vsrn,scan,bfan",
        help="[vse,vsrn,scan,bfan]",
    )
    parser.add_argument("--batches", type=flags.numbers, default="32,128", help="[32,128]")
    parser.add_argument("--data", default="icons", help="a prepared set or a folder [icons]")
    parser.add_argument("--dim", type=flags.whole(0), default=0, help="width; 0: of the model [0]")
    parser.add_argument(
        "--steps", type=flags.whole(1, 1_000_000), default=15, help="a variant [15]"
    )
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument(
        "--threads", type=flags.whole(1, flags.THREADS), default=1, help="torch CPU threads [1]"
    )
    parser.add_argument(
        "--out", type=Path, help="[<device>/...-modules.json where sede bench writes]"
    )
    parser.add_argument(
        "--allow-missing", action="append", default=[], metavar="BACKEND", help="as sede bench"
    )
    return parser


def main(argv: Sequence[str], results: Path) -> int:
    """Measure, print the table, and write it with the machine's facts in one file."""
    arguments = _parser().parse_args(argv)
    measured.check_allowed(arguments.allow_missing)
    settings = {name: getattr(arguments, name) for name in ("data", "device", "dim")}
    check(arguments.models, arguments.batches, **settings)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    utc = machine.utc_now()
    stamp = f"{utc[:10].replace('-', '')}-{machine.git_state().rstrip('+')[:7]}"
    slug = machine.slug(machine.device_name(device))
    out = arguments.out or results / slug / f"{stamp}-modules.json"
    flags.check_place(out, "--out")
    print(measured.header(device), flush=True)
    measured.refuse_gaps(device, arguments.allow_missing)
    cases: list[dict[str, Any]] = []
    for model in arguments.models:
        for batch in arguments.batches:
            found = measure(model, batch, steps=arguments.steps, **settings)
            steps = {
                name: {
                    "ms": round(median(one.milliseconds), 2),
                    "ratio": round(median(one.ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in one.ratios],
                }
                for name, one in found.items()
            }
            cases.append({"model": model, "batch": batch, "steps": steps})
            print(markdown(cases[-1:]).splitlines()[-1], flush=True)
    print(f"\n{markdown(cases)}")
    facts = machine.facts(device) | {"utc": utc, "load_average": machine.load_average()}
    asked = {"data": arguments.data, "dim": arguments.dim, "variants": VARIANTS}
    write_text(out, json.dumps({**facts, **asked, "cases": cases}, indent=1) + "\n")
    print(f"written to {out}")
    return 0
