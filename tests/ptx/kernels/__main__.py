"""``python -m tests.ptx.kernels``: execute the launch tables, print a line each, keep a record."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.ptx.machine.__main__ import order_path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.kernels", description=__doc__)
    parser.add_argument("--arch", default="sm_90", help="sm_80, sm_89 or sm_90")
    parser.add_argument("--every", action="store_true", help="every entry, not the first of a row")
    parser.add_argument("--only", default="", metavar="TEXT", help="problems whose name holds TEXT")
    parser.add_argument("--skip", metavar="TEXT", help="leave out problems whose name holds TEXT")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the lines in this folder")
    parser.add_argument(
        "--stale",
        action="store_true",
        help="with --write: only what has no line of today's kernels",
    )
    parser.add_argument("--json", action="store_true", help="print lines of the record")
    return parser


def main() -> int:
    """1 when something is wrong."""
    options = _parser().parse_args()
    order_path()
    from sede_kernels.backends.triton.launch import Config
    from tests.ptx.kernels import record
    from tests.ptx.kernels.execute import Outcome, run
    from tests.ptx.kernels.problem import Problem

    lines: list[dict[str, Any]] = []
    wrong: list[str] = []

    def keep(outcome: Outcome) -> None:
        line = record.line_of(outcome)
        lines.append(line)
        state = "wrong" if outcome.harmful else "right"
        wrong.extend(f"{record.key_of(line)}: {text}" for text in outcome.harmful)
        print(
            json.dumps(line) if options.json else
            f"{state} {record.key_of(line)}: {line['worst_share_of_budget']} of the budget, "
            f"{outcome.seconds:.1f} s, compiled in {outcome.compile_seconds:.1f} s, "
            f"{line['faults'] or 'no faults'}",
            flush=True,
        )  # fmt: skip
        if options.write and not outcome.harmful:
            record.write(options.write, [line])

    done = record.current(options.write) if options.write and options.stale else set()

    def wanted(problem: Problem, entries: dict[str, Config]) -> bool:
        key = record.key_of(record.line_of(Outcome(problem, options.arch, entries)))
        named = options.only in problem.name
        return named and (not options.skip or options.skip not in problem.name) and key not in done

    run(options.arch, every=options.every, wanted=wanted, keep=keep)
    if options.write:
        record.prune(options.write)
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
