"""``python -m tests.ptx.host_time``: the host's time of calls whose launches do nothing.

``--write records/ptx`` keeps it in ``host-time.json``, with the load of the machine.

The backends ``cuda`` and ``triton`` take turns on CPU tensors. Everything up to the driver is
theirs: checks, memory, arguments, launch arithmetic. Triton's own launcher, which is compiled, is
left out too, so its times are a little too short.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from sede_kernels import MemoryBank, SEDELoss, functional
from sede_kernels.backends import cuda as backend
from tests.ptx.machine import cuda, driver
from tests.ptx.machine.speed import processor

ARCHITECTURE = "sm_80"
NAME = "host-time.json"


def play_idle() -> None:
    """From here on no launch of either backend does anything."""
    driver.install(ARCHITECTURE)
    driver.Launcher.__call__ = lambda self, *arguments: None  # type: ignore[method-assign]
    cuda.install(ARCHITECTURE)
    cuda.configure(ARCHITECTURE, idle=True)
    backend.emulate(lambda tensors: None)


def unit(rows: int, dim: int) -> torch.Tensor:
    """Half rows of unit length that learn."""
    rows_of = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).bfloat16()
    return rows_of.requires_grad_()


def calls(name: str) -> dict[str, Callable[[], Any]]:
    """What is timed; each gets its gradients too where it has some."""
    query, key, text, other = (unit(8, 64) for _ in range(4))
    bank = MemoryBank(64, 64, dtype=torch.bfloat16)
    ids = torch.arange(8)
    criterion, with_batch = (
        SEDELoss(64, 64, in_batch_negatives=batch, dtype=torch.bfloat16) for batch in (False, True)
    )
    keys = key.detach()
    scores = torch.randn(8, 32, requires_grad=True)

    def weighted() -> None:
        functional.weighted_info_nce(
            query, key, bank, hardness=3.0, query_ids=ids, backend=name
        ).backward()

    def both() -> None:
        criterion(query, text, key, other, ids=ids).backward()

    def and_batch() -> None:
        with_batch(query, text, key, other, ids=ids).backward()

    def attached() -> None:
        functional.weighted_info_nce(
            query, key, bank, hardness=3.0, query_ids=ids, detach_weights=False, margin=0.2,
            false_negatives="positive", positive_focus=1.0, backend=name,
        ).backward()  # fmt: skip

    def given() -> None:
        functional.score_info_nce(scores, backend=name).backward()

    def hardest() -> None:
        functional.hardest_negatives(query, bank, 4, query_ids=ids, backend=name)

    return {
        "weighted_info_nce, forward and backward": weighted,
        "the same with every option": attached,
        "SEDELoss of banks, forward and backward": both,
        "SEDELoss of banks and batch, forward and backward": and_batch,
        "score_info_nce, forward and backward": given,
        "hardest_negatives": hardest,
        "MemoryBank.enqueue": lambda: bank.enqueue(keys),
    }


def measure(rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Call -> backend -> microseconds, the median of rounds in which the backends take turns."""
    found: dict[str, dict[str, list[float]]] = {}
    named = {name: calls(name) for name in ("cuda", "triton")}
    for number in range(rounds + 1):  # the first one compiles
        for name, its in named.items():
            os.environ["SEDE_BACKEND"] = name
            for what, call in its.items():
                started = time.perf_counter()
                for _ in range(repeats if number else 2):
                    call()
                took = (time.perf_counter() - started) / repeats * 1e6
                if number:
                    found.setdefault(what, {}).setdefault(name, []).append(took)
    return {
        what: {name: round(statistics.median(times), 1) for name, times in each.items()}
        for what, each in found.items()
    }


def main() -> None:
    """A line of JSON for each call, and the record where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.host_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the record there")
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    torch.set_num_threads(1)
    play_idle()
    found = measure(options.rounds, options.repeats)
    for what, times in found.items():
        print(json.dumps({"call": what, "us": times, "ratio": times["cuda"] / times["triton"]}))
    if options.write is not None:
        record = {
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "load": load,
            "threads": 1,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "rounds": options.rounds,
            "repeats": options.repeats,
            "microseconds": found,
        }
        (options.write / NAME).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
