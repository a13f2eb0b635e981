"""``python -m tests.ptx.suites``: the interpreter's and the GPU's tests on the PTX machine, a file
at a time; ``--write records/ptx`` keeps a line for each file.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import triton

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/interpret", "tests/gpu")
ARCHITECTURES = ("sm_80", "sm_90")
FILE = ROOT / "records" / "ptx" / "suites.jsonl"
#: File -> tests that compiled code misses; docs/ptx.md says why and by how much.
MISSED = {"tests/interpret/test_cross_attention.py": ["test_extremes[i2t]"]}
#: It starts the interpreter, in processes of its own.
_STARTER = "test_own_process.py"


def files() -> list[str]:
    """Every file of tests, from the root of the clone."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).glob("test_*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name != _STARTER)


def run(file: str, architecture: str) -> dict[str, Any]:
    """A line of the record; ``failed`` names the tests, or has the end of what pytest printed."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [sys.executable, "-m", "tests.ptx.machine", "--arch", architecture, "-m", "pytest",
             "-q", "-m", "", "-p", "no:cacheprovider", f"--junitxml={report}", file],
            cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    of = {kind: [case for case in cases if case.find(kind) is not None]
          for kind in ("failure", "error", "skipped")}  # fmt: skip
    failed = [case.get("name", "") for case in of["failure"] + of["error"]]
    passed = len(cases) - len(failed) - len(of["skipped"])
    if done.returncode and not failed:
        failed = [(done.stdout + done.stderr)[-500:]]
    return {
        "file": file,
        "architecture": architecture,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "passed": passed,
        "skipped": len(of["skipped"]),
        "failed": failed,
        "seconds": round(time.perf_counter() - started),
    }


def unexplained(line: dict[str, Any]) -> list[str]:
    """The tests that failed and are not known to."""
    return [name for name in line["failed"] if name not in MISSED.get(line["file"], ())]


def load(file: Path) -> list[dict[str, Any]]:
    """The committed lines."""
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def key_of(line: dict[str, Any]) -> tuple[str, str, str]:
    """What a line is of."""
    return line["file"], line["architecture"], line["triton"]


def write(file: Path, line: dict[str, Any]) -> None:
    """Beside the lines of other files, architectures and versions."""
    both = {key_of(each): each for each in [*load(file), line]}
    file.write_text("".join(json.dumps(both[key]) + "\n" for key in sorted(both)))


def main() -> int:
    """1 when a test failed that is not known to."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.suites", description=__doc__)
    parser.add_argument("--arch", default="sm_90", choices=ARCHITECTURES)
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path holds TEXT")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the lines in this folder")
    options = parser.parse_args()
    wrong = False
    for file in files():
        if options.only in file:
            line = run(file, options.arch)
            print(json.dumps(line), flush=True)
            wrong = wrong or bool(unexplained(line))
            if options.write:
                write(options.write / FILE.name, line)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
