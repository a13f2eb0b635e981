"""Finds the CUDA compiler. Of the standard library only: setup.py runs this file by its path."""

import os
import re
import shutil
import sys
from pathlib import Path

#: What pip brings nvcc with, for machines without a toolkit; the extra ``nvcc`` in pyproject.toml.
WHEELS = (
    "nvidia-cuda-nvcc>=13",
    "nvidia-cuda-crt>=13",
    "nvidia-nvvm>=13",
    "nvidia-cuda-runtime>=13",
    "nvidia-cuda-cccl>=13",
)
MISSING = "nvcc was not found: set CUDA_HOME, put it on the path, or `pip install {}`".format(
    " ".join(wheel.partition(">")[0] for wheel in WHEELS)
)


def from_wheels() -> str | None:
    """The compiler in the pip wheels that this interpreter sees, the newest toolkit's."""

    def version(folder: Path) -> int:
        return int(re.sub(r"\D", "", folder.name) or 0)

    toolkits = [folder for entry in sys.path for folder in Path(entry or ".").glob("nvidia/cu*")]
    for toolkit in sorted(toolkits, key=version, reverse=True):
        if found := shutil.which("nvcc", path=str(toolkit / "bin")):
            return found
    return None


def nvcc() -> str | None:
    """The compiler of CUDA_HOME where that is set; else of the path; else of the pip wheels."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or from_wheels()


if __name__ == "__main__":
    print(nvcc() or sys.exit(MISSING))
