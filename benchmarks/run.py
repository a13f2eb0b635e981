"""``sede bench``: measure, compare, plot, table, targets, modules, host, ahead.

Usage: sede bench [--quick] [options] | sede bench compare BASE HEAD
     | sede bench plot [RESULTS] | sede bench table [RESULTS] | sede bench targets [RESULTS]
     | sede bench modules [options] | sede bench host [options] | sede bench ahead RESULTS
"""

import argparse
import fnmatch
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from . import (
    ahead,
    compare,
    flags,
    host,
    limits,
    machine,
    measured,
    modules,
    plot,
    table,
    targets,
)
from .case import Case
from .memory import Memory
from .records import threads_of
from .registry import GRIDS, OPERATIONS
from .resume import DeviceLostError, Progress, is_lost
from .runner import Record, Runner, shrunk

PARTS = ("compare", "plot", "table", "targets", "modules", "host", "ahead")
_LOST = 75  # the status of a process that another one can follow
_QUICK_SECONDS, _QUICK_BUDGET, _FULL_BUDGET = 250.0, 1.2, 6.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sede bench",
        description="Time and memory of every op beside its peers; each result is checked against "
        f"fp64 before it is timed. Also: {', '.join(f'`sede bench {part}`' for part in PARTS)}.",
    )
    parser.add_argument("--quick", action="store_true", help="the short grid, under five minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    parser.add_argument(
        "--op",
        action="append",
        metavar="GLOB",
        help="only these ops or case titles, as --list prints them (repeatable)",
    )
    parser.add_argument(
        "--impl", action="append", metavar="NAME", help="only these implementations (repeatable)"
    )
    parser.add_argument(
        "--budget", type=flags.seconds, help="seconds of timing a case [1.2 quick, 6 full]"
    )
    parser.add_argument(
        "--seconds",
        type=flags.seconds,
        help="start no case after so many seconds [250 quick, none full]",
    )
    parser.add_argument("--seed", type=flags.whole(0, flags.SEED), help="of the inputs [fresh]")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="note in this file what is done and under way; where one is left by a run that was "
        "ended, go on with it",
    )
    parser.add_argument(
        "--patience",
        type=flags.seconds,
        help="end where a first call, or the timing of a case, takes more seconds [any time]",
    )
    parser.add_argument(
        "--threads", type=flags.whole(1, flags.THREADS), help="torch CPU threads [torch's choice]"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="results file, or a folder that exists [<device>/... in records/bench/ of the clone, "
        "elsewhere in ./sede-bench/; of --smoke a temporary folder]",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        help="figures folder [figures/ beside the results file]",
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="BACKEND",
        help="measure although this backend could be here and is not: cpu, triton or cuda",
    )
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs an NVIDIA GPU and a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _matches(case: Case, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, glob) for name in (case.op, case.title) for glob in globs)


def cases_of(device: str, *, quick: bool, smoke: bool, op: Sequence[str] | None) -> list[Case]:
    """The cases of a run with these options.

    Raises:
        ValueError: there is none.
    """
    cases = GRIDS[(device, quick or smoke)]()
    if op:
        cases = [c for c in cases if _matches(c, op)]
    if not cases:
        raise ValueError(f"no case matches --op {' '.join(op or ())}; see --list")
    return list({shrunk(c).title: shrunk(c) for c in cases}.values()) if smoke else cases


def _check_implementations(asked: Sequence[str], cases: Sequence[Case]) -> None:
    known = {v.name: None for case in cases for v in OPERATIONS[case.op].variants(case)}
    for name in asked:
        if name not in known:
            raise ValueError(f"--impl must be one of {', '.join(known)}, got {name!r}")


def _measure(runner: Runner, cases: list[Case], until: float | None) -> tuple[list[Record], int]:
    """The records, and the status that they have the process end with."""
    found = runner.broken(cases)
    failed = False
    for number, case in enumerate(cases, 1):
        if until is not None and time.monotonic() > until:
            left = cases[number - 1 :]
            print(f"\nout of time, {len(left)} cases not run (raise --seconds for them):")
            print("\n".join(f"  {case.title}" for case in left))
            break
        print(f"\n[{number}/{len(cases)}] ", end="", flush=True)
        try:
            new = runner.case(case)
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            print(f"{case.title}: its inputs do not fit in memory ({error})")
            continue
        except DeviceLostError as error:
            print(f"{case.title}: the GPU is lost to this process ({error})", flush=True)
            return found, _LOST
        except RuntimeError:  # in the inputs or the truth: the next case may be well
            print(f"{case.title}: not measured\n{traceback.format_exc()}", flush=True)
            failed = True
            if is_lost(runner.device):
                return found, _LOST
            continue
        found += new
        print(table.of_case(new) if new else case.title, flush=True)
    bad = [r for r in found if r["kind"] == "ours" and r["status"] in ("wrong", "error")]
    return found, 1 if bad or failed else 0


def _bench(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    device = _device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    cases = cases_of(device.type, quick=arguments.quick, smoke=arguments.smoke, op=arguments.op)
    if arguments.list:
        print("\n".join(case.title for case in cases))
        return 0
    measured.check_allowed(arguments.allow_missing)
    _check_implementations(arguments.impl or (), cases)
    quick = arguments.quick or arguments.smoke
    seconds = arguments.seconds or (_QUICK_SECONDS if quick else None)
    slug = machine.slug(machine.device_name(device))
    stamp = machine.utc_now().replace("-", "").replace(":", "")
    run = f"{stamp}-{machine.git_state().rstrip('+')}"
    shared = arguments.out is None and not arguments.smoke  # beside results of earlier runs
    home = Path(tempfile.mkdtemp(prefix="sede-bench-")) if arguments.smoke else machine.home()
    out = arguments.out or home / slug / f"{run}.jsonl"
    if out.is_dir():
        out /= f"{run}.jsonl"
    flags.check_place(out, "--out")
    figures = arguments.figures or out.parent / "figures"
    if not arguments.no_figures:
        plot.require_matplotlib()
        flags.check_folder(figures, "--figures")
    print(measured.header(device), flush=True)
    measured.refuse_gaps(device, arguments.allow_missing, arguments.impl or ())
    weighed = device.type == "cpu" and not arguments.no_memory
    memory = Memory(timeout_s=30.0 if quick else 120.0) if weighed else None
    threads = threads_of([{"threads": torch.get_num_threads()}])
    print(f"{machine.device_name(device)}, {threads}; results in {out}")
    found_limits = limits.measure(
        device,
        {case.dtype for case in cases},
        seconds=0.01 if arguments.smoke else 0.4,
        small=arguments.smoke,
    )
    for dtype, rate in found_limits.matrix.items():
        print(f"limit {dtype}: {rate.value:,.0f} GFLOP/s ({rate.of})")
    print(f"limit memory: {found_limits.copy.value:.1f} GB/s ({found_limits.copy.of})")
    default = 0.05 if arguments.smoke else _QUICK_BUDGET if quick else _FULL_BUDGET
    runner = Runner(
        device,
        found_limits,
        out,
        seed=secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed,
        budget_s=arguments.budget or default,
        memory=memory,
        only=frozenset(arguments.impl or ()),
        fresh_limits=not arguments.smoke,
        progress=Progress(out, run, arguments.resume, arguments.patience),
    )
    records, status = _measure(runner, cases, None if seconds is None else started + seconds)
    print(f"\n{table.summary(records)}")
    if not arguments.no_figures:
        shown = plot.newest([out.parent]) if shared and records else records
        for path in plot.draw(shown, figures):
            print(f"figure: {path}")
    print(f"{len(records)} records in {out}; {time.monotonic() - started:.0f} s")
    if status != _LOST:
        runner.progress.end()
    return status


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``sede bench`` and ``python -m benchmarks.run``.

    Returns:
        0; 1 when a result of ours failed its check or a comparison got worse; 2 for wrong usage;
        75 when the GPU is lost to this process, and `--resume` goes on in another.
    """
    words: Sequence[str] = sys.argv[1:] if argv is None else argv
    results = machine.home()
    try:
        if words and words[0] == "compare":
            return compare.main(list(words[1:]))
        if words and words[0] == "table":
            return table.main(list(words[1:]), results)
        if words and words[0] == "ahead":
            return ahead.main(list(words[1:]))
        if words and words[0] == "targets":
            return targets.main(list(words[1:]), results)
        if words and words[0] == "modules":
            return modules.main(list(words[1:]), results)
        if words and words[0] == "host":
            return host.main(list(words[1:]), results)
        if words and words[0] == "plot":
            return plot.main(list(words[1:]), results)
        if words and not words[0].startswith("-"):
            raise ValueError(f"there is no `sede bench {words[0]}`: choose from {', '.join(PARTS)}")
        return _bench(_parser().parse_args(words))
    except (ValueError, FileNotFoundError) as error:
        print(f"sede bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
