"""Interleaved timing: A B C A B C, fresh input sets in turn, medians with p20 and p80."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .case import Run

_SHORTEST_SAMPLE_S = 2e-4  # below it, several calls make one sample
_FEWEST, _MOST = 5, 60


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call.

    Attributes:
        median: of the samples.
        p20: their 20th percentile.
        p80: their 80th percentile.
        repeats: how many samples.
    """

    median: float
    p20: float
    p80: float
    repeats: int


class CallError(Exception):
    """A call that failed while it was timed.

    Attributes:
        name: of the variant.
        reason: what it raised.
    """

    def __init__(self, name: str, reason: Exception) -> None:
        super().__init__(name)
        self.name, self.reason = name, reason


def summarize(samples_ms: list[float]) -> Timing:
    """Median, p20, p80."""
    p20, p50, p80 = np.percentile(samples_ms, [20, 50, 80])
    return Timing(float(p50), float(p20), float(p80), len(samples_ms))


@contextmanager
def _collector_off() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _host_sample(run: Run, turn: int, calls: int) -> float:
    start = time.perf_counter()
    for call in range(calls):
        run(turn + call)
    return (time.perf_counter() - start) / calls * 1e3


def _device_sample(run: Run, turn: int, calls: int) -> float:
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    for call in range(calls):
        run(turn + call)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / calls


def interleave(
    runs: Mapping[str, Run],
    device: torch.device,
    budget_s: float,
    sample: Callable[[Run, int, int], float] | None = None,
) -> dict[str, Timing]:
    """Time all variants of one case round by round.

    Each variant has run before, in its check, and is called once more outside the clock. Rounds
    are as many as the budget allows, 5 to 60; a variant one call of which would eat more than a
    tenth of the budget joins the first and later evenly spaced rounds only, at least three. Each
    call takes the input set that was used longest ago: no variant finds in a cache what another
    one has just read.

    Args:
        runs: name -> call.
        device: where they run; on a GPU events are the clock.
        budget_s: seconds for the whole case, kept unless the fewest samples take longer.
        sample: (run, turn, calls) -> ms a call; for tests.

    Raises:
        CallError: a call failed; it says whose.
    """
    timed = sample or (_device_sample if device.type == "cuda" else _host_sample)

    def take(name: str, turn: int, calls: int) -> float:
        try:
            return timed(runs[name], turn, calls)
        except Exception as error:
            raise CallError(name, error) from error

    estimate_s = {name: take(name, 1, 1) / 1e3 for name in runs}
    calls = {
        name: max(1, min(50, round(_SHORTEST_SAMPLE_S / max(cost, 1e-7))))
        for name, cost in estimate_s.items()
    }
    slow = {name for name, cost in estimate_s.items() if cost > budget_s / 10}
    left = budget_s - 3 * sum(estimate_s[name] for name in slow)
    quick_round = sum(cost * calls[n] for n, cost in estimate_s.items() if n not in slow)
    rounds = _FEWEST
    if quick_round > 0:
        rounds = int(min(_MOST, max(_FEWEST, left / quick_round)))
    stride = {name: max(1, rounds // 3) if name in slow else 1 for name in runs}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    turn = 0
    with _collector_off():
        for number in range(rounds):
            for name in runs:
                if number % stride[name] == 0 and not (name in slow and len(samples[name]) >= 3):
                    samples[name].append(take(name, turn, calls[name]))
                    turn += calls[name]
    return {name: summarize(values) for name, values in samples.items()}
