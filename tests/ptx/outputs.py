"""What a GPU's kernels gave, beside what the PTX machine gives: the machine's calibration.

    python -m tests.ptx.outputs --gpu outputs.npz        # on a GPU, with many processes
    python -m tests.ptx.outputs --compare outputs.npz    # anywhere: the machine runs the same

The problems are those of tests/ptx/kernels: inputs are drawn on the CPU from the problem's name, so
both sides get the same bits. The splits of the bank are the same as well. Backend ``cuda`` gets the
problems of Triton's tables, those of region-word similarities left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tests.ptx.machine.__main__ import order_path

#: Problems that launch every kernel; they come first, the others while there is time.
FIRST = (
    "bank_lse 256/lean", "bank_lse 128/full", "bank_lse 256/static", "bank_lse 256/safe",
    "bank_lse step/half", "bank_lse_pair 128/lean", "chunks half", "batch_lse half",
    "hardest half", "erase 64", "enqueue bfloat16", "enqueue int8", "enqueue_fragments bfloat16",
    "score_info_nce rows", "cross_attention half/32", "cross_attention_pairs half/32x32",
    "info_nce parts", "bank_lse step/tf32", "bank_lse_pair 256/full", "chunks ieee", "chunks int8",
    "batch_lse tf32", "hardest int8", "erase 1024", "score_info_nce columns",
)  # fmt: skip
_ROOT = Path(__file__).parents[2]
#: Of these the backend cuda has no kernels.
_OF_TRITON = "cross_attention"
#: Numbers of a result that are kept, evenly over it.
_KEPT = 4096
_FUNCTIONS = (
    "weighted_info_nce", "symmetric_info_nce", "bank_lse", "hardest_negatives", "attention_erase",
    "cross_attention_similarity", "cross_attention_pairs", "score_info_nce",
)  # fmt: skip
Results = dict[str, np.ndarray]


def moved(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on the device; gradients find their way back."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """The public function; what asks for the kernels goes to the device and comes back."""

    def call(*arguments: Any, **options: Any) -> Any:
        if options.get("backend") != "triton":
            return function(*arguments, **options)
        there = moved(arguments, device), {key: moved(v, device) for key, v in options.items()}
        return moved(function(*there[0], **there[1]), torch.device("cpu"))

    return call


def _enqueue_on(device: torch.device, enqueue: Callable[..., None]) -> Callable[..., None]:
    """As ``_on``, for a bank, which travels itself."""

    def call(bank: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        if options.get("backend", os.environ.get("SEDE_BACKEND")) != "triton":
            enqueue(bank, *arguments, **options)
            return
        bank.to(device)
        enqueue(bank, *moved(arguments, device), **options)
        bank.to("cpu")

    return call


def _calls_go_to(device: torch.device, stack: ExitStack) -> None:
    import sede_kernels
    from sede_kernels import functional

    for name in _FUNCTIONS:
        patched = _on(device, getattr(functional, name))
        stack.enter_context(mock.patch.object(functional, name, patched))
    for bank in (sede_kernels.MemoryBank, sede_kernels.FragmentBank):
        patched = _enqueue_on(device, bank.enqueue)
        stack.enter_context(mock.patch.object(bank, "enqueue", patched))


def sample(result: Tensor) -> np.ndarray:
    """At most so many numbers of a result, evenly over it, and its norm last."""
    flat = result.detach().double().flatten()
    kept = flat[:: max(1, flat.numel() // _KEPT)][:_KEPT]
    finite = flat[flat.isfinite()]
    return torch.cat([kept, finite.norm().view(1)]).numpy()


def listed(backend: str, architecture: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Problems and the first entry of each of their rows, those of ``FIRST`` before the others."""
    from tests.ptx.kernels.execute import entries_of, problems

    place = {name: number for number, name in enumerate(FIRST)}
    for problem in sorted(problems(), key=lambda p: place.get(p.name, len(place))):
        if backend == "cuda" and problem.name.startswith(_OF_TRITON):
            continue
        for entries in entries_of(problem, architecture)[:1]:
            yield problem, entries


def run(
    problem: Any, architecture: str, entries: dict[str, Any], backend: str
) -> tuple[Results, str]:
    """Results by name, and what is wrong with them beside fp64, or an empty text."""
    from tests.ptx.kernels import problem as checks
    from tests.ptx.kernels.execute import execute

    checks.results = {}
    try:
        outcome = execute(problem, architecture, entries)
        found = {name: sample(result) for name, result in checks.results.items()}
    finally:
        checks.results = None
    # The rows of the tables are Triton's.
    known = backend == "cuda" and outcome.error.startswith("the call took other rows")
    wrong = [outcome.error.strip().splitlines()[-1]] if outcome.error and not known else []
    wrong += [
        f"{check.name}: error {check.error:.3g}, budget {check.budget:.3g}"
        for check in outcome.checks
        if not check.share <= 1.0
    ]
    return found, "; ".join(wrong)


def _save(path: Path, results: Results) -> None:
    """Write the file whole or not at all."""
    fresh = path.with_name(path.name + ".new.npz")
    np.savez_compressed(fresh, **results)
    fresh.replace(path)


def _facts(architecture: str, cores: int, name: str) -> Results:
    import triton

    facts = [name, architecture, str(cores), triton.__version__, torch.__version__]
    return {"facts": np.array(facts)}


def on_gpu(path: Path, backend: str, share: int, of: int, device: torch.device) -> int:
    """Run this process's share of the problems; the file is written again after each."""
    from sede_kernels.backends.triton import launch
    from tests.ptx.machine import cuda

    properties = torch.cuda.get_device_properties(device)
    architecture, cores = launch.device_class(device)
    if backend == "cuda":
        cuda.take_over()
    found, wrong = _facts(architecture, cores, properties.name), 0
    with ExitStack() as stack:
        _calls_go_to(device, stack)
        for number, (problem, entries) in enumerate(listed(backend, architecture)):
            if number % of != share:
                continue
            started = time.perf_counter()
            results, text = run(problem, architecture, entries, backend)
            seconds = time.perf_counter() - started
            print(f"{backend} {problem.name}: {text or 'right'}, {seconds:.1f} s", flush=True)
            found |= {f"{backend}/{problem.name}/{name}": kept for name, kept in results.items()}
            _save(path, found)
            wrong += bool(text)
    return 1 if wrong else 0


def _many(path: Path, jobs: int) -> int:
    """Processes of their own, since a fault of one kernel ends all work of its process."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [("cuda", 0, 1)] + [("triton", share, jobs) for share in range(jobs)]
        started = [
            (
                Path(folder) / f"{number}.npz",
                [sys.executable, "-m", "tests.ptx.outputs", "--backend", backend,
                 "--share", str(share), "--of", str(of)],
            )
            for number, (backend, share, of) in enumerate(parts)
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONSAFEPATH": ""}
        running = [
            subprocess.Popen([*words, "--gpu", str(part)], cwd=_ROOT, env=environment)
            for part, words in started
        ]
        status = 0
        while running:
            time.sleep(1.0)
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                status = status or process.returncode
            whole: Results = {}
            for part, _ in started:
                if part.exists():
                    with np.load(part) as kept:
                        whole |= dict(kept.items())
            if whole:
                _save(path, whole)
    return status


def compare(path: Path, only: str = "") -> list[tuple[str, float, float, float]]:
    """Name, share of equal numbers, relative difference and largest one, of each result.

    The machine runs with as many multiprocessors as the GPU had.
    """
    import triton

    from tests.ptx.machine import cuda, driver

    with np.load(path) as kept:
        found = dict(kept.items())
    name, architecture, cores, *versions = found.pop("facts").tolist()
    print(f"{name}, {architecture}, Triton {versions[0]}, torch {versions[1]}")
    if versions[0] != triton.__version__:
        print(f"Here is Triton {triton.__version__}: its kernels and tiles may be others.")
    driver.install(architecture)
    driver.state.strict = False
    cuda.install(architecture, int(cores))
    lines = []
    for backend in ("triton", "cuda"):
        if not any(key.startswith(f"{backend}/") for key in found):
            continue
        if backend == "cuda":
            cuda.take_over()
        for problem, entries in listed(backend, architecture):
            start = f"{backend}/{problem.name}/"
            theirs = {key[len(start) :]: v for key, v in found.items() if key.startswith(start)}
            if theirs and only in start:
                ours, _ = run(problem, architecture, entries, backend)
                lines += [
                    (f"{start}{key}", *difference(there, ours[key]))
                    for key, there in theirs.items()
                    if key in ours
                ]
    return lines


def difference(there: np.ndarray, here: np.ndarray) -> tuple[float, float, float]:
    """Share of equal numbers, relative difference, and the largest one over the mean square."""
    both = np.isfinite(here)
    if there.shape != here.shape or not np.array_equal(np.isfinite(there), both):
        return 0.0, np.inf, np.inf
    a, b = there[both][:-1], here[both][:-1]
    size = np.sqrt(np.square(b).mean()) if b.size else 0.0
    if not b.size or size == 0.0:
        return 1.0, float(np.abs(a).max(initial=0.0)), float(np.abs(a).max(initial=0.0))
    apart = np.abs(a - b)
    relative = float(np.sqrt(np.square(apart).mean()) / size)
    norm = abs(there[-1] - here[-1]) / max(abs(here[-1]), 1e-30)
    return float((a == b).mean()), max(relative, float(norm)), float(apart.max() / size)


def main() -> int:
    """1 where a result on the GPU is wrong beside fp64, or far from the machine's."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.outputs", description=__doc__)
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="run on a GPU, keep the results")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="beside the machine's")
    parser.add_argument("--only", default="", metavar="TEXT", help="results whose name holds TEXT")
    parser.add_argument("--jobs", type=int, default=6, help="processes, and one for cuda")
    parser.add_argument("--backend", choices=("triton", "cuda"), help="one process's")
    parser.add_argument("--share", type=int, default=0, help="which share of the problems is its")
    parser.add_argument("--of", type=int, default=1, help="how many shares there are")
    options = parser.parse_args()
    order_path()
    if options.gpu is not None and options.backend is None:
        return _many(options.gpu.resolve(), options.jobs)
    if options.gpu is not None:
        device = torch.device("cuda", torch.cuda.current_device())
        return on_gpu(options.gpu, options.backend, options.share, options.of, device)
    if options.compare is None:
        parser.error("--gpu or --compare is missing")
    lines = compare(options.compare, options.only)
    for name, equal, relative, largest in lines:
        print(f"{name}: {equal:.1%} equal, {relative:.2e} apart, at most {largest:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
