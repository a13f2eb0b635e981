"""The first calls of a grid in many processes at once: they fill the caches of the compilers.

    python -m benchmarks.warm --quick --jobs 12

What Triton and Inductor compile is kept on disk, so that the run that measures compiles nothing. An
error is printed and no more: that run finds it again, and records it.
"""

import argparse
import faulthandler
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from typing import Any

import torch

from . import flags
from .case import Case
from .registry import OPERATIONS, find
from .resume import is_lost
from .run import cases_of

#: Variants whose first call compiles.
_COMPILES = ("sede triton", "sede kernels", "torch.compile", "cce torch_compile")


def calls(cases: Sequence[Case], device: torch.device) -> list[tuple[int, str]]:
    """Number of the case and name of the variant of each call, the first cases first."""
    return [
        (number, variant.name)
        for number, case in enumerate(cases)
        if OPERATIONS[case.op].absent(case, device) is None
        for variant in OPERATIONS[case.op].variants(case)
        if variant.name.startswith(_COMPILES)
        and (not case.only or variant.name in case.only)
        and variant.absent(case, device) is None
    ]


def call(case: Case, name: str, device: torch.device) -> None:
    """One call of a variant on fresh inputs."""
    operation = OPERATIONS[case.op]
    generator = torch.Generator(device).manual_seed(0)
    run = find(operation.variants(case), name).build(
        case, [operation.draw(case, device, generator)]
    )
    run(0)
    torch.compiler.reset()


def _cases(options: dict[str, Any]) -> list[Case]:
    return cases_of(
        options["device"], quick=options["quick"], smoke=options["smoke"], op=options["op"]
    )


def _work(options: dict[str, Any], waiting: "Queue[tuple[int, str] | None]") -> None:
    """Take calls until there is none, or the GPU is lost."""
    device = torch.device(options["device"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)
    cases = _cases(options)
    while (item := waiting.get()) is not None:
        case, name = cases[item[0]], item[1]
        faulthandler.dump_traceback_later(options["patience"], exit=True, file=sys.__stderr__)
        started = time.monotonic()
        try:
            call(case, name, device)
            said = "ok"
        except Exception as error:
            said = f"{type(error).__name__}: {str(error).strip()[:300]}"
        lost = is_lost(device)
        print(f"{time.monotonic() - started:5.1f} s  {case.title}, {name}: {said}", flush=True)
        if lost:
            print("the GPU is lost to this process", flush=True)
            return
        if device.type == "cuda":
            torch.cuda.empty_cache()
    faulthandler.cancel_dump_traceback_later()


def main(argv: Sequence[str] | None = None) -> int:
    """0, whatever became of the calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the short grid")
    parser.add_argument("--smoke", action="store_true", help="the short grid at tiny sizes")
    parser.add_argument("--op", action="append", metavar="GLOB", help="only these ops or titles")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=flags.whole(1, flags.THREADS), default=4, help="processes")
    parser.add_argument(
        "--patience", type=flags.seconds, default=60.0, help="seconds a call may take"
    )
    options = vars(parser.parse_args(argv))
    context = multiprocessing.get_context("spawn")
    waiting = context.Queue()
    found = calls(_cases(options), torch.device(options["device"]))
    jobs = min(options["jobs"], len(found))
    for item in [*found, *[None] * jobs]:
        waiting.put(item)
    workers = [context.Process(target=_work, args=(options, waiting)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    waiting.cancel_join_thread()
    print(f"{len(found)} calls in {jobs} processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
