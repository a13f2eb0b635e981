"""The grid under pytest-benchmark: ``pytest benchmarks`` (``-k info_nce``, ``--benchmark-json``).

Each variant passes the same check as in ``sede bench`` before it is timed, or the test fails.
``SEDE_BENCH_GRID=full`` takes the full grid, ``smoke`` tiny sizes; the default is quick.
"""

import math
import os
from collections.abc import Iterator

import pytest
import torch

from sede_kernels import BackendUnavailableError

from . import machine, measured
from .case import Case, Inputs, Operation
from .check import Checker
from .memory import out_of_memory
from .registry import GRIDS, OPERATIONS, find
from .runner import nbytes, shrunk

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRID = os.environ.get("SEDE_BENCH_GRID", "quick")


def _cases() -> list[Case]:
    cases = GRIDS[(DEVICE.type, GRID != "full")]()
    if GRID == "smoke":
        cases = list({shrunk(case).title: shrunk(case) for case in cases}.values())
    return cases


def _pairs() -> list[object]:
    # Names only: building a variant, and with it a foreign package, waits for the test.
    return [
        pytest.param(case, variant.name, id=f"{case.title}-{variant.name}".replace(" ", "_"))
        for case in _cases()
        for variant in OPERATIONS[case.op].variants(case)
        if not case.only or variant.name in case.only
    ]


Prepared = tuple[Operation, list[Inputs], Checker]
_latest: dict[str, Prepared] = {}


@pytest.fixture
def prepared(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """Input sets and truth of the case; consecutive variants of one case share them."""
    case: Case = request.node.callspec.params["case"]
    operation = OPERATIONS[case.op]
    missing = operation.absent(case, DEVICE)
    if missing is not None:
        pytest.skip(missing)
    if case.title not in _latest:
        _latest.clear()
        generator = torch.Generator(DEVICE).manual_seed(torch.seed() % (1 << 31))
        sets = [operation.draw(case, DEVICE, generator)]
        count = math.ceil(3 * machine.last_level_cache(DEVICE) / max(1, nbytes(sets[0])))
        for _ in range(min(8, max(2, count)) - 1):
            sets.append(operation.draw(case, DEVICE, generator))
        _latest[case.title] = (operation, sets, Checker(operation, case, sets[0]))
    yield _latest[case.title]


def test_no_backend_is_missing() -> None:
    """Deselect it to measure without a backend that this machine could have."""
    measured.refuse_gaps(DEVICE, ())


@pytest.mark.parametrize(("case", "name"), _pairs())
def test_speed(case, name, prepared, benchmark):
    operation, sets, checker = prepared
    variant = find(operation.variants(case), name)
    reason = variant.absent(case, DEVICE)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    try:
        run = variant.build(case, sets)
        verdict = checker.verdict(variant, run(0))
    except BackendUnavailableError as error:
        pytest.skip(f"{name}: {str(error).splitlines()[0]}")
    except Exception as error:
        if out_of_memory(error):
            pytest.skip(f"{name}: out of memory")
        raise
    assert verdict.passed, f"{verdict.errors} above {verdict.budgets}"
    turn = 0

    def call() -> None:
        nonlocal turn
        turn += 1
        run(turn)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info.update(error=verdict.worst, case=case.title, **machine.facts(DEVICE))
    benchmark.pedantic(call, rounds=3 if GRID == "smoke" else 7, warmup_rounds=1)
