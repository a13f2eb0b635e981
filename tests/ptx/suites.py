"""``python -m tests.ptx.suites``: the interpreter's and the GPU's tests on the PTX machine, a file
at a time; ``--write records/ptx`` keeps a line for each file. ``--minutes 6``, again and again,
runs them in pieces: the outcome of each test is kept in the machine's cache until then.
"""

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from tests.ptx import pieces
from tests.ptx.machine import build

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


def _digest(file: str, architecture: str) -> str:
    """Of what decides how a test ends: the package, the tests' helpers, the machine, versions."""
    found = hashlib.sha256(
        f"{file} {architecture} {triton.__version__} {torch.__version__}".encode()
    )
    path = ROOT / file
    helpers = [each for each in path.parent.glob("*.py") if not each.name.startswith("test_")]
    parts = (ROOT / "sede_kernels", ROOT / "tests" / "ptx" / "machine")
    of_parts = [
        each for part in parts for kind in ("py", "json") for each in part.rglob(f"*.{kind}")
    ]
    for each in sorted({path, ROOT / "tests" / "conftest.py", *helpers, *of_parts}):
        found.update(str(each).encode() + each.read_bytes())
    found.update(build.digest().encode())
    return found.hexdigest()[:16]


def outcomes(file: str, architecture: str) -> Path:
    """Where the outcomes of a file are kept between pieces, for as long as nothing changes."""
    folder = build.cache_folder() / "suites"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_digest(file, architecture)}.jsonl"


def _test(file: str, architecture: str, kept: Path, seconds: float) -> tuple[int, str]:
    """What pytest on the machine returned and printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ptx.machine", "--arch", architecture, "-m", "pytest",
         "-q", "-m", "", "-p", "no:cacheprovider", "-p", "tests.ptx.pieces", file],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1",
             pieces.OUTCOMES: str(kept), pieces.SECONDS: str(seconds)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def run(
    file: str, architecture: str, kept: Path | None = None, seconds: float = 0.0
) -> dict[str, Any]:
    """A line of the record; ``failed`` names the tests, or has the end of what pytest printed.

    Args:
        file: of tests, from the root of the clone.
        architecture: sm_80 or sm_90.
        kept: outcomes of earlier pieces, which goes on from there; None: all in one piece.
        seconds: of this piece; 0: no limit. What it did not reach is counted in ``left``.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = kept or Path(folder) / "outcomes.jsonl"
        code, printed = (
            (0, "") if pieces.complete(kept) else _test(file, architecture, kept, seconds)
        )
        collected, ended = pieces.load(kept)
    of = {kind: [ended[test] for test in collected if test in ended
                 and ended[test]["outcome"] == kind]
          for kind in ("passed", "skipped", "failed")}  # fmt: skip
    failed = [line["test"].partition("::")[2] for line in of["failed"]]
    left = len(collected) - sum(map(len, of.values()))
    cut = left > 0 and code == pytest.ExitCode.INTERRUPTED
    if not cut and (left or (code and not failed)):
        failed.append(printed[-500:])
    return {
        "file": file,
        "architecture": architecture,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "passed": len(of["passed"]),
        "skipped": len(of["skipped"]),
        "failed": failed,
        "seconds": round(sum(line["seconds"] for lines in of.values() for line in lines)),
        **({"left": left} if cut else {}),
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
    """1 when a test failed that is not known to, 2 when the minutes were not enough."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.suites", description=__doc__)
    parser.add_argument("--arch", default="sm_90", choices=ARCHITECTURES)
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path holds TEXT")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the lines in this folder")
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="begin no test after these; the next call goes on")  # fmt: skip
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes if options.minutes else None
    code = 0
    for file in [file for file in files() if options.only in file]:
        if until is None:
            line = run(file, options.arch)
        elif (seconds := until - time.monotonic()) > 0:
            line = run(file, options.arch, outcomes(file, options.arch), seconds)
        else:
            return code or 2
        print(json.dumps(line), flush=True)
        code = 1 if unexplained(line) else code
        if "left" in line:
            return code or 2
        if options.write:
            write(options.write / FILE.name, line)
    return code


if __name__ == "__main__":
    sys.exit(main())
