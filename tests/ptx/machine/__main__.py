"""``python -m tests.ptx.machine``: run a script with Triton's kernels on the PTX machine."""

import argparse
import os
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

_ROOT = str(Path(__file__).parents[3])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx.machine",
        description="Run a script whose Triton kernels, compiled for a GPU, execute on CPU tensors "
        "in the PTX machine. A fault raises. `-m MODULE` runs a module, such as pytest.",
    )
    parser.add_argument("--arch", default="sm_90", help="sm_80, sm_86, sm_89 or sm_90")
    parser.add_argument("--cores", type=int, default=4, help="multiprocessors the host code sees")
    parser.add_argument(
        "--cuda", action="store_true", help="what asks for backend triton is served by cuda"
    )
    parser.add_argument("--gpu", action="store_true", help="tensors say that they are on a GPU")
    parser.add_argument("--keep-going", action="store_true", help="list faults at the end instead")
    parser.add_argument("--seed", type=int, default=0, help="random order of the warps")
    parser.add_argument("--slice", type=int, default=0, help="most instructions of a warp's turn")
    parser.add_argument("--threads", type=int, default=0, help="blocks at a time; 0: one a core")
    parser.add_argument("--table", action="store_true", help="print the instruction table")
    parser.add_argument("--speed", action="store_true", help="measure warp instructions a second")
    parser.add_argument("--write", type=Path, metavar="DIR", help="with --speed: keep it there")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module")
    parser.add_argument("script", nargs="?")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def order_path() -> None:
    """The installed package before the folder beside this one, as conftest.py does."""
    sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)] + [_ROOT]
    os.environ["PYTHONSAFEPATH"] = "1"


def _print_table() -> None:
    from tests.ptx.machine.library import machine, text_of

    for line in text_of(machine().ptx_table).splitlines():
        name, source, meaning = line.split("\t")
        print(f"{name:14} {meaning}\n{'':14} PTX ISA 9.0, {source}")


def _script(options: argparse.Namespace) -> None:
    if options.module:
        runpy.run_module(options.script, run_name="__main__", alter_sys=True)
        return
    folder = str(Path(options.script).resolve().parent)
    if folder != _ROOT:
        sys.path.insert(0, folder)
    runpy.run_path(options.script, run_name="__main__")


def _run(options: argparse.Namespace) -> None:
    from tests.ptx.machine import cuda, driver, gpu
    from tests.ptx.machine.module import Options

    driver.install(options.arch, options.cores)
    driver.state.strict = not options.keep_going
    driver.state.options = Options(seed=options.seed, slice=options.slice, threads=options.threads)
    cuda.install(options.arch, options.cores, driver.state.options)
    if options.cuda:
        cuda.take_over()
    sys.argv = [options.script, *options.arguments]
    try:
        with gpu.played(options.arch) if options.gpu else nullcontext():
            _script(options)
    finally:
        print(driver.state.statistics.summary(options.arch), file=sys.stderr)
        launches, executed, kernels = cuda.report()
        if launches:
            print(
                f"CUDA backend: {launches} launches of {len(kernels)} kernels, "
                f"{executed / 1e6:.1f} M warp instructions",
                file=sys.stderr,
            )
        seen = {(name, str(fault)) for name, fault in driver.state.statistics.faults}
        for name, fault in sorted(seen):
            kind = fault.split("]")[0].lstrip("[")
            if options.keep_going or kind not in driver.TOLERATED:
                print(f"{name}: {fault}", file=sys.stderr)


def main() -> None:
    """Read the command line and do it."""
    parser = _parser()
    options = parser.parse_args()
    order_path()
    if options.table:
        _print_table()
    elif options.speed:
        from tests.ptx.machine import speed

        speed.main(options.write)
    elif options.script:
        _run(options)
    else:
        parser.error("a script is missing")


if __name__ == "__main__":
    main()
