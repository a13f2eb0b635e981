"""``sede info``: what this machine can run, in a form to paste into a bug report."""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import sede_kernels
from sede_kernels.backends.registry import NAMES, default_backend

_PACKAGES = ("torch", "triton", "numpy", "pillow", "tensorboard")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor, as Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gb": round(properties.total_memory / 2**30, 1),
            }
        )
    return found


def collect() -> dict[str, Any]:
    """Versions, processor, GPUs and each backend with the reason it is missing.

    Returns:
        A JSON-ready dict. Reads the machine, changes nothing.

    Example:
        >>> sorted(collect())[:3]
        ['backends', 'cpu', 'cpu_count']
    """
    from sede_kernels.backends import cpu

    describe = getattr(cpu, "describe", None)  # which instruction set was chosen
    return {
        "sede_kernels": sede_kernels.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_kernels": describe() if describe is not None else None,
        "gpus": _gpus(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "default_backend": default_backend(),
        "backends": sede_kernels.available_backends(),
    }


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def main(argv: list[str] | None = None) -> int:
    """Print the report; ``--json`` for machines."""
    parser = argparse.ArgumentParser(prog="sede info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    report = collect()
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"sede-kernels {report['sede_kernels']}, Python {report['python']}")
    counts = (_counted(report["cpu_count"], "core"), _counted(report["threads"], "thread"))
    print(f"machine      {', '.join((report['cpu'], *counts))}")
    if report["cpu_kernels"]:
        print(f"CPU kernels  {report['cpu_kernels']}")
    for gpu in report["gpus"]:
        print(f"GPU          {gpu['name']}, sm {gpu['capability']}, {gpu['memory_gb']} GB")
    versions = (f"{name} {found or 'absent'}" for name, found in report["packages"].items())
    print(f"packages     {', '.join(versions)}")
    default, known = report["default_backend"], ", ".join(NAMES)
    wrong = "" if default in NAMES else f"; there is no such backend, choose from {known}"
    print(f"default      {default} (set SEDE_BACKEND to change it{wrong})")
    for name, reason in report["backends"].items():
        print(f"  {name:<10} {'available' if reason is None else 'not available: ' + reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
