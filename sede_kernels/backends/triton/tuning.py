"""Live tuning: which entry of a launch table is fastest for a shape on this very device.

``SEDE_AUTOTUNE=1`` times the entries of a row the first time a shape comes by, which waits for the
device. ``SEDE_TUNING_FILE`` names a JSON file that keeps what was found: it is read with and
without tuning, so that results can be shipped, and written after every new one. Only entries of the
shipped tables are ever tried or used.
"""

import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sede_kernels import whole_file
from sede_kernels.backends.triton import launch

_WARM_UPS, _RUNS = 2, 5
_found: dict[str, list[int]] = {}


def autotuning() -> bool:
    """Whether the user asked for live tuning."""
    return os.environ.get("SEDE_AUTOTUNE", "0") == "1"


def tuning_file() -> Path | None:
    """Where results are kept, or None."""
    name = os.environ.get("SEDE_TUNING_FILE", "")
    return Path(name) if name else None


@cache
def _stored(path: Path) -> dict[str, list[int]]:
    """The results of a file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text())
        return {str(key): [int(n) for n in entry] for key, entry in loaded.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"SEDE_TUNING_FILE: {path} must hold tuning results as JSON, which it does not "
            f"({error}); delete it or name another."
        ) from error


def _store(path: Path, results: dict[str, list[int]]) -> None:
    """Write the file whole or not at all."""
    whole_file.write_text(path, json.dumps(results, indent=1, sort_keys=True))


def forget() -> None:
    """Drop what this process has found or read."""
    _found.clear()
    _stored.cache_clear()


def _bucket(sizes: tuple[int, ...]) -> str:
    """Sizes up to the next power of two: neighbours share a result."""
    return "x".join(str(1 << max(size - 1, 0).bit_length()) for size in sizes)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(
    run: Callable[[launch.Config], Any], config: launch.Config, device: torch.device
) -> float:
    """Median time of a run."""
    for _ in range(_WARM_UPS):
        run(config)
    times: list[float] = []
    for _ in range(_RUNS):
        _wait(device)
        start = time.perf_counter()
        run(config)
        _wait(device)
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)[len(times) // 2]


def choose(
    kernel: str,
    key: str,
    device: torch.device,
    architecture: str,
    sizes: tuple[int, ...],
    run: Callable[[launch.Config], Any],
) -> launch.Config:
    """The configuration for a call.

    Args:
        kernel: name of a launch table.
        key: row of the table.
        device: where the call runs.
        architecture: its class.
        sizes: the sizes that matter for speed.
        run: launches the kernel with a configuration; called only while tuning, never while a
            CUDA graph is captured.

    Returns:
        What was found for these sizes, else the default.
    """
    entries = launch.candidates(kernel, key, architecture)
    path = tuning_file()
    if len(entries) == 1 or not (autotuning() or path):
        return entries[0]
    name = f"{kernel} {key} {architecture} {_bucket(sizes)}"
    known = _found.get(name) or (_stored(path).get(name) if path else None)
    if known is not None and launch.Config(*known) in entries:
        return launch.Config(*known)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not autotuning() or capturing:
        return entries[0]
    best = min(entries, key=lambda config: _milliseconds(run, config, device))
    _found[name] = [best.rows, best.cols, best.warps, best.stages]
    if path:
        _store(path, {**_stored(path), **_found})
    return best
