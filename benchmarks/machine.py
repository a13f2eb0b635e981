"""What the records say of the machine, and the folder that they belong to."""

import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import sede_kernels
from sede_kernels.info import cpu_model


def clone() -> Path | None:
    """The clone that holds these files, else the one around the present folder, else None."""
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parent.parent, here, *here.parents):
        if (folder / "benchmarks" / "gpu_suite.sh").is_file() and (folder / "csrc").is_dir():
            return folder
    return None


def home() -> Path:
    """Where the folders of devices go: ``records/bench`` of the clone, else ``sede-bench`` here."""
    found = clone()
    return found / "records" / "bench" if found else Path("sede-bench")


def _command(*words: str, folder: Path | None = None) -> str | None:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=20, check=True, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _sources(folder: Path) -> dict[str, bytes]:
    """The Python files of a package by their place in it, without the suite's own."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith("_bench")}


@cache
def git_state() -> str:
    """Commit of the measured package, with ``+`` when library or benchmark sources differ from it.

    ``unknown`` where it cannot be told: the package is neither the clone's, nor equal to it file
    by file, nor installed by pip from a commit.
    """
    package, root = Path(sede_kernels.__file__).resolve().parent, clone()
    own = root / "sede_kernels" if root else None
    if root is None or own is None or (own != package and _sources(own) != _sources(package)):
        return _installed_commit() or "unknown"
    sha = _command("git", "rev-parse", "--short=12", "HEAD", folder=root)
    if sha is None:
        return "unknown"
    sources = ("sede_kernels", "csrc", "benchmarks/*.py", "benchmarks/*/*.py")
    status = ("git", "status", "--porcelain", "--untracked-files=no", "--", *sources)
    return sha + ("+" if _command(*status, folder=root) else "")


def _installed_commit() -> str | None:
    """The commit that pip installed from, where it was given a repository."""
    try:
        text = distribution("sede-kernels").read_text("direct_url.json")
        commit = json.loads(text or "{}")["vcs_info"]["commit_id"]
    except (PackageNotFoundError, ValueError, KeyError):
        return None
    return str(commit)[:12]


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Name of the processor with its number of cores."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags, as Linux names them."""
    try:
        found = re.search(r"flags\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return frozenset(found[1].split() if found else ())


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(found[1]) * units.get(found[2], 1) if found else 0


def last_level_cache(device: torch.device) -> int:
    """Bytes of the cache that a rotated input must not fit in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        _bytes(path.read_text())
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=32 * 2**20)


def load_average() -> float | None:
    """Of the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def utc_now() -> str:
    """``2026-01-31T12:34:56Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def device_name(device: torch.device) -> str:
    """What figures call the machine: the GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def slug(name: str) -> str:
    """Folder name of a device."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts(device: torch.device) -> dict[str, Any]:
    """The fields that are the same for every record of a run."""
    driver = None
    if device.type == "cuda":
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = (_command(*query) or "unknown").splitlines()[0]
    return {
        "device": device_name(device),
        "driver": driver,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "sede_kernels": sede_kernels.__version__,
        "git": git_state(),
    }
