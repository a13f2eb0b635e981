"""``python -m tests.ptx.mutation``: put faults into compiled kernels and keep what noticed them."""

import argparse
import sys
from pathlib import Path

from tests.ptx.machine.__main__ import order_path


def main() -> int:
    """0; the score is printed at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.mutation", description=__doc__)
    parser.add_argument("--arch", default="sm_90", help="sm_80 or sm_90")
    parser.add_argument("--only", default="", metavar="TEXT", help="problems whose name holds TEXT")
    parser.add_argument("--file", type=Path, help="instead of records/ptx/mutations.jsonl")
    options = parser.parse_args()
    order_path()
    from tests.ptx.mutation import score

    file = options.file or score.FILE
    score.run(options.arch, file, options.only)
    lines = score.load(file)
    missed = [line for line in lines if not line["noticed"] and "equivalent" not in line]
    print(f"{len(lines)} faults, {len(missed)} neither noticed nor equivalent", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
