"""Faults in the compiled CUDA kernels, and which tests of the backend notice them.

``python -m tests.ptx.mutation.cuda`` makes records/ptx/cuda-mutations.jsonl again: faults drawn
from a fixed seed in the kernels of every GPU, each put in alone while tests of tests/ptx/cuda run
until one fails. The kernels of compute capability 9.0 have tests/ptx/cuda/test_hopper_faults.py.
"""

import argparse
import contextlib
import functools
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sede_kernels.backends.cuda.nvcc import nvcc
from tests.ptx.machine import cuda
from tests.ptx.machine.module import Module, Options
from tests.ptx.mutation import score
from tests.ptx.mutation.cuda_faults import KINDS_OF_NVCC
from tests.ptx.mutation.faults import Fault

ARCHITECTURE = "sm_80"
FILE = score.FILE.with_name("cuda-mutations.jsonl")
ROOT = Path(__file__).parents[3]
#: Source file -> the names of its kernels, and the tests that run them, the quickest first.
GROUPS = {
    "chunk": (r"(similarities|weigh|accumulate|gradients)_\w+",
              ("functions", "bank_lse", "info_nce")),
    "finish": (r"finish_\w+", ("bank_lse",)),
    "fused": (r"fused_b?f16_\w+", ("bank_lse", "info_nce")),
    "fused_tf32": (r"fused_tf32_\w+", ("tf32",)),
    "fused_exact": (r"fused_exact_\w+", ("exact", "info_nce")),
    "info_nce": (r"info_nce_\w+", ("info_nce",)),
    "score_info_nce": (r"score_\w+", ("scores_and_sets",)),
    "hardest": (r"merge_top", ("functions",)),
    "enqueue": (r"write_\w+", ("scores_and_sets", "functions")),
    "erase": (r"erase_\w+", ("functions",)),
}  # fmt: skip
#: Faults in each.
EACH = 16
#: A block that runs much longer than any of these does not end.
_LIMITED = Options(step_limit=3000)


@functools.cache
def version() -> str:
    """Of nvcc: another one writes other texts."""
    said = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"V([\d.]+)", said.stdout)
    return found[1] if found else "unknown"


def alone(text: str, kernel: str) -> str:
    """A PTX text without its other kernels."""
    first, *parts = re.split(r"^(?=\.visible \.entry )", text, flags=re.MULTILINE)
    kept = [first]
    for part in parts:
        whole = part.startswith(f".visible .entry {kernel}(")
        kept.append(part if whole else part[part.index("\n}") + 2 :])
    return "".join(kept)


def texts() -> dict[str, str]:
    """Kernel -> its text alone, of those that get faults."""
    every = cuda.texts(ARCHITECTURE)
    names = "|".join(pattern for pattern, _ in GROUPS.values())
    return {name: alone(text, name) for name, text in every.items() if re.fullmatch(names, name)}


class _First:
    """Bounds what launches may run, and keeps why the first test failed."""

    def __init__(self) -> None:
        self.text = ""

    def pytest_runtest_setup(self) -> None:
        cuda.configure(ARCHITECTURE, options=_LIMITED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.text:
            self.text = report.longreprtext


def why(text: str) -> str:
    """What noticed a fault, from the report of a failed test."""
    kind = re.search(r"launch of \w+ failed: \d+ faults\s+(?:E\s+)?\[([\w-]+)", text)
    if kind is not None:
        return kind[1]
    return "raised" if "launch of" in text else "result"


def run_tests(group: str) -> str:
    """Why the tests of a group failed; empty where they passed.

    Raises:
        RuntimeError: they did not run.
    """
    first = _First()
    files = [str(ROOT / f"tests/ptx/cuda/test_{name}.py") for name in GROUPS[group][1]]
    words = ["-q", "-x", "-m", "ptx", "-p", "no:cacheprovider", "--tb=short", *files]
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main(words, plugins=[first])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code} for {group}")
    return why(first.text) if code == pytest.ExitCode.TESTS_FAILED else ""


def targets(group: str) -> list[score.Target]:
    """The kernels of a group and the lines of them that its tests run.

    Raises:
        RuntimeError: a test fails without a fault.
    """
    of = {name: text for name, text in texts().items() if re.fullmatch(GROUPS[group][0], name)}
    modules = {name: Module(text) for name, text in of.items()}
    cuda.stand_in(modules)
    try:
        if failed := run_tests(group):
            raise RuntimeError(f"{group} fails without a fault: {failed}")
    finally:
        cuda.stand_in({})
    found = []
    for name, module in sorted(modules.items()):
        ran = frozenset(line for line, did in module.coverage(name).items() if did)
        found.append(score.Target(name, of[name], ran))
    return found


def noticed(group: str, target: score.Target, fault: Fault) -> str:
    """What the tests say of a kernel with a fault in it."""
    module = Module(fault.applied(target.text))
    cuda.stand_in({target.kernel: module})
    try:
        return run_tests(group)
    finally:
        cuda.stand_in({})


def lines_of(group: str, skipped: int, count: int) -> Iterator[dict[str, Any]]:
    """A line for each fault of a group but for the first ones."""
    drawn = score.drawn(group, ARCHITECTURE, targets(group), count, KINDS_OF_NVCC)
    for target, fault in drawn[skipped:]:
        yield {
            "problem": group,
            "architecture": ARCHITECTURE,
            "nvcc": version(),
            "kernel": target.kernel,
            "text": score.digest(target.text)[:12],
            "line": fault.line,
            "group": fault.kind.group,
            "kind": fault.kind.name,
            "instruction": " ".join(fault.before.split())[:160],
            "noticed": noticed(group, target, fault),
        }


def main() -> int:
    """0; how many faults nothing noticed is printed at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.mutation.cuda", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="the first N of each")
    parser.add_argument("--each", type=int, default=EACH, metavar="N", help="up to the Nth of each")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    cuda.install(ARCHITECTURE)
    lines = score.load(options.file)
    judged = {score.key_of(x): x["equivalent"] for x in lines if "equivalent" in x}
    for group in options.only:
        if not options.skip:
            lines = [x for x in lines if x["problem"] != group]
        for line in lines_of(group, options.skip, options.each):
            if score.key_of(line) in judged and not line["noticed"]:
                line["equivalent"] = judged[score.key_of(line)]
            lines.append(line)
            print(json.dumps(line), flush=True)
            score.write(options.file, lines)
    missed = [x for x in lines if not x["noticed"] and "equivalent" not in x]
    print(f"{len(lines)} faults, {len(missed)} neither noticed nor equivalent", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
