"""``sede bench host``: what a loss costs the host on tiny inputs, in time and in launches.

``host_time_*`` is the time of forward and backward over that of eager cross entropy on the same
query, positive and bank, both taken in turn and a few calls at a time: medians of ratios, so that
another program's turn on the processor does not count. ``dispatched_ops_*`` counts kernel launches
and torch ops on the eager path, but for views and allocations; the incoming gradient of 1 is one
of the backward's. ``dispatched_ops_train_step_*`` counts those of a whole step of ``sede train``.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sede_kernels import MemoryBank, SEDELoss, weighted_info_nce
from sede_kernels.backends.cpu import _native
from sede_kernels.ops import transforms
from sede_kernels.whole_file import write_text

from . import flags, machine, measured, train_step

B, K, D = 4, 8, 16
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

_LOOKS = ("_fits", "_fit")  # native functions that look at tensors and launch nothing

Loss = Callable[[], Tensor]


class Leaves:
    """The tensors of a case; those that learn."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        rows = [F.normalize(torch.randn(n, D, generator=draw), dim=1) for n in (B, B, B, B, K)]
        self.image, self.text, self.image_key, self.text_key, self.bank = rows
        self.image.requires_grad_()
        self.text.requires_grad_()
        self.ids = torch.arange(B)

    def forget(self) -> None:
        """Drop the gradients, as an optimizer does."""
        self.image.grad = self.text.grad = None


def _eager(leaves: Leaves) -> Loss:
    target = torch.zeros(B, dtype=torch.long)

    def loss() -> Tensor:
        positive = (leaves.image * leaves.text_key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, leaves.image @ leaves.bank.T], dim=1) / 0.07
        return F.cross_entropy(logits, target)

    return loss


def _weighted(leaves: Leaves) -> Loss:
    bank = MemoryBank(K, D)
    bank.enqueue(leaves.bank, torch.arange(K) + 100)

    def loss() -> Tensor:
        found = weighted_info_nce(
            leaves.image, leaves.text_key, bank, hardness=5.0, query_ids=leaves.ids
        )
        assert isinstance(found, Tensor)
        return found

    return loss


def _sede(in_batch: bool) -> Callable[[Leaves], Loss]:
    def build(leaves: Leaves) -> Loss:
        criterion = SEDELoss(K, D, hardness=5.0, in_batch_negatives=in_batch)
        criterion.enqueue(leaves.bank, leaves.bank.flip(0), ids=torch.arange(K) + 100)

        def loss() -> Tensor:
            found: Tensor = criterion(
                leaves.image, leaves.text, leaves.image_key, leaves.text_key, ids=leaves.ids
            )
            return found

        return loss

    return build


EAGER = "eager cross entropy"
#: Name -> (its loss, most of eager's time, most launches and ops of forward and of backward).
CASES: dict[str, tuple[Callable[[Leaves], Loss], float, tuple[int, int]]] = {
    "weighted_info_nce": (_weighted, 0.7, (3, 3)),
    "sede_loss_of_banks": (_sede(in_batch=False), 1.5, (4, 4)),
    "sede_loss": (_sede(in_batch=True), 2.0, (5, 5)),
}


class Counter(TorchDispatchMode):
    """Counts torch ops but for views and allocations, native calls and Triton's launches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        schema = func._schema
        views = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        kind, name = schema.name.split("::")
        if not views and kind != "profiler" and name not in _ALLOCATIONS:
            self.names.append(schema.name)
        return func(*args, **(kwargs or {}))


class _Launches:
    """The native module, whose calls are counted; a look at tensors (``..._fits``) is a check."""

    def __init__(self, module: Any, counter: Counter) -> None:
        self._module, self._counter = module, counter

    def __getattr__(self, name: str) -> Any:
        if not name.endswith(_LOOKS):
            self._counter.names.append(f"native::{name}")
        return getattr(self._module, name)


def _triton_launches(counter: Counter) -> AbstractContextManager[Any]:
    """Triton's launches are counted, on a GPU and in the interpreter; nothing runs without it."""
    if "triton" not in sys.modules:
        return nullcontext()
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    stack = ExitStack()
    for kind in (JITFunction, InterpretedFunction):

        def run(
            kernel: Any, *args: Any, original: Any = kind.run, grid: Any, warmup: bool, **rest: Any
        ) -> Any:
            before = len(counter.names)
            result = original(kernel, *args, grid=grid, warmup=warmup, **rest)
            # The interpreter's own copies of tensors are no part of a call.
            counter.names[before:] = [] if warmup else [f"triton::{kernel.fn.__name__}"]
            return result

        stack.enter_context(mock.patch.object(kind, "run", run))
    return stack


@contextmanager
def counted() -> Iterator[Counter]:
    """What runs inside, on the eager path: that path is not left because something counts."""
    counter = Counter()
    with ExitStack() as stack:
        if _native.unavailable_reason() is None:
            native = _Launches(_native.module(), counter)
            stack.enter_context(mock.patch.object(_native, "module", lambda: native))
        stack.enter_context(_triton_launches(counter))
        stack.enter_context(mock.patch.object(transforms, "only_autograd_looks_on", lambda: True))
        stack.enter_context(counter)
        yield counter


def launches(build: Callable[[Leaves], Loss]) -> tuple[list[str], list[str]]:
    """Names of the launches and ops of one forward and one backward."""
    leaves = Leaves()
    return launches_of(build(leaves), leaves)


def launches_of(loss: Loss, leaves: Leaves) -> tuple[list[str], list[str]]:
    """Those of a loss, after a call that fills caches."""
    loss().backward()
    leaves.forget()
    with counted() as forward:
        value = loss()
    with counted() as backward:
        value.backward()
    return forward.names, backward.names


def _time(loss: Loss, leaves: Leaves, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        loss().backward()
        leaves.forget()
    return 1e6 * (time.perf_counter() - started) / calls


def measure(rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds of every case and of eager, in turn, ``rounds`` times."""
    leaves = Leaves()
    losses = {EAGER: _eager(leaves), **{name: case[0](leaves) for name, case in CASES.items()}}
    taken: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(rounds + 2):
        for name, loss in losses.items():
            microseconds = _time(loss, leaves, calls)
            if turn >= 2:  # the first ones warm caches
                taken[name].append(microseconds)
    return taken


def results(rounds: int, calls: int) -> dict[str, Any]:
    """The cases as a record keeps them."""
    taken = measure(rounds, calls)
    found: dict[str, Any] = {}
    for name, (build, most, targets) in CASES.items():
        ratios = [a / b for a, b in zip(taken[name], taken[EAGER], strict=True)]
        found[f"host_time_{name}"] = {
            "us": round(median(taken[name]), 1),
            "eager_us": round(median(taken[EAGER]), 1),
            "ratio": round(median(ratios), 3),
            "target": most,
        }
        forward, backward = launches(build)
        found[f"dispatched_ops_{name}"] = {
            "forward": forward,
            "backward": backward,
            "count": [len(forward), len(backward)],
            "target": list(targets),
        }
    return found | train_step.results(counted)


def markdown(cases: dict[str, Any]) -> str:
    """A row a case."""
    lines = ["| case | measured | target |", "|---|--:|--:|"]
    for name, case in cases.items():
        if "ratio" in case:
            value = f"{case['ratio']:.2f} x eager ({case['us']:.0f} us)"
            most = f"{case['target']} x"
        elif "ops" in case:
            value, most = f"{case['ops']}, {case['of_sede']} of them kernels of ours", ""
        else:
            value, most = (" + ".join(map(str, case[key])) for key in ("count", "target"))
        lines.append(f"| `{name}` | {value} | {most} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sede bench host", description=__doc__)
    parser.add_argument("--rounds", type=flags.whole(1, 10_000), default=500, help="[500]")
    parser.add_argument("--calls", type=flags.whole(1, 10_000), default=3, help="a round [3]")
    parser.add_argument("--out", type=Path, help="[<device>/...-host.json where sede bench writes]")
    parser.add_argument(
        "--allow-missing", action="append", default=[], metavar="BACKEND", help="as sede bench"
    )
    return parser


def main(argv: Sequence[str], results_folder: Path) -> int:
    """Measure, print the table, and write it with the machine's facts in one file."""
    arguments = _parser().parse_args(argv)
    measured.check_allowed(arguments.allow_missing)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    utc = machine.utc_now()
    stamp = f"{utc[:10].replace('-', '')}-{machine.git_state().rstrip('+')[:7]}"
    slug = machine.slug(machine.device_name(device))
    out = arguments.out or results_folder / slug / f"{stamp}-host.json"
    flags.check_place(out, "--out")
    print(measured.header(device), flush=True)
    measured.refuse_gaps(device, arguments.allow_missing)
    cases = results(arguments.rounds, arguments.calls)
    print(markdown(cases))
    facts = machine.facts(device) | {"utc": utc, "load_average": machine.load_average()}
    sizes = {"B": B, "K": K, "D": D, "rounds": arguments.rounds, "calls": arguments.calls}
    write_text(out, json.dumps({**facts, **sizes, "cases": cases}, indent=1) + "\n")
    print(f"written to {out}")
    return 0
