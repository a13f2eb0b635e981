"""Which share of a run of ``sede train`` waits for data, from a feature file that no cache holds.

    python -m benchmarks.waiting --workers 1 --write

Makes a corpus of SCAN's form with random features (29,000 images of 36 x 2048 in float32: a file of
8.55 GB), reads the file once past the page cache for the rate of the disk, and trains one epoch of
``scan`` at batch 128, each worker count from a cold file. The corpus stays in --folder.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sede_kernels.cli import main as sede
from sede_kernels.whole_file import write_text

from . import flags, machine

REGIONS, WIDTH = 36, 2048
IMAGES = 29_000
_CHUNK = 250  # images written at a time
_READ = 16 << 20


def corpus(folder: Path, images: int, regions: int = REGIONS, width: int = WIDTH) -> Path:
    """The corpus, made where it is not there in this size; one caption an image.

    Returns:
        Its feature file.
    """
    features, last = folder / "train_ims.npy", folder / "train_caps.txt"
    if last.exists() and np.load(features, mmap_mode="r").shape == (images, regions, width):
        return features
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part, count in (("dev", 20), ("test", 20), ("train", images)):
        made = folder / f"{part}_ims.npy"
        shape = (count, regions, width)
        out = np.lib.format.open_memmap(made, mode="w+", dtype=np.float32, shape=shape)
        block = draw.standard_normal((min(_CHUNK, count), regions, width), dtype=np.float32)
        for start in range(0, count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, count))
            out[rows] = block[: rows.stop - start]
        out.flush()
        del out
        lines = [f"a {part} dog, number {n} of {count}, on a hill" for n in range(count)]
        write_text(folder / f"{part}_caps.txt", "\n".join(lines) + "\n")
    return features


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(path: Path) -> float:
    """MB/s of one reading of the file from end to end, cold."""
    forget(path)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as handle:
        while handle.read(_READ):
            pass
    return path.stat().st_size / 1e6 / (time.perf_counter() - start)


def trained(home: Path, workers: int, threads: int, batch: int) -> dict[str, Any]:
    """One epoch from a cold file."""
    features = home / "cold_precomp" / "train_ims.npy"
    forget(features)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        words = ["train", "--data", str(features.parent), "--out", str(out), "--model=scan"]
        words += [f"--batch-size={batch}", "--epochs=1", f"--workers={workers}"]
        status = sede([*words, f"--threads={threads}"])
        if status:
            raise SystemExit(status)
        found = json.loads((out / "test.json").read_text())
    keep = ("waiting_percent", "train_seconds")
    return {"workers": workers, **{name: found[name] for name in keep}}


def write_record(what: str, measured: dict[str, Any]) -> Path:
    """A record in the folder of this machine, beside those of ``sede bench``."""
    device, utc = torch.device("cpu"), machine.utc_now()
    facts = machine.facts(device) | {"utc": utc, "load_average": machine.load_average()}
    stamp = f"{utc[:10].replace('-', '')}-{machine.git_state().rstrip('+')[:7]}"
    out = machine.home() / machine.slug(machine.device_name(device)) / f"{stamp}-{what}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({**facts, **measured}, indent=1) + "\n")
    print(f"written to {out}")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write a record where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sede_waiting")
    parser.add_argument("--images", type=flags.whole(2), default=IMAGES)
    parser.add_argument("--batch-size", type=flags.whole(2), default=128)
    parser.add_argument("--workers", type=flags.whole(0, 1024), nargs="+", default=[1])
    threads = flags.whole(1, flags.THREADS)
    parser.add_argument("--threads", type=threads, default=1, help="of the training process")
    parser.add_argument("--write", action="store_true", help="keep a record")
    options = parser.parse_args(argv)
    features = corpus(options.folder / "cold_precomp", options.images)
    rate = disk_rate(features)
    counts = options.workers
    cases = [trained(options.folder, n, options.threads, options.batch_size) for n in counts]
    measured = {
        "model": "scan",
        "batch_size": options.batch_size,
        "regions": REGIONS,
        "width": WIDTH,
        "file_bytes": features.stat().st_size,
        "disk_mb_per_s": round(rate, 1),
        "training_threads": options.threads,
        "backend": os.environ.get("SEDE_BACKEND", "auto"),
        "cases": cases,
    }
    print(json.dumps(measured, indent=1))
    if options.write:
        write_record("waiting", measured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
