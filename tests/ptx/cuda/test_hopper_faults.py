"""Faults put into the compiled pass of compute capability 9.0, one at a time, and noticed.

Every instruction that orders something is left out once: waits, arrivals, fences, barriers. The
same problem then ends in a fault of the machine or in wrong numbers. ``test_hopper.py`` runs these
tests on sm_90.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sede_kernels.backends.cuda import _native
from sede_kernels.backends.cuda.bank_lse import bank_lse
from sede_kernels.types import Want
from tests.ptx.cuda.oracle import Problem, assert_sums, expected
from tests.ptx.machine import cuda

ENTRY = b"hopper_bf16_one_64"
#: What is left out, and how often it stands in the kernel.
ORDERING = {
    rb"mbarrier\.try_wait[^;]*;\s*@!over bra AGAIN\w*;": 5,
    rb"mbarrier\.arrive\.shared::cta\.b64 _, [^;]*;": 2,
    rb"mbarrier\.arrive\.expect_tx\.shared::cta\.b64 _, [^;]*;": 2,
    rb"wgmma\.fence\.sync\.aligned;": 3,
    rb"wgmma\.commit_group\.sync\.aligned;": 4,
    rb"wgmma\.wait_group\.sync\.aligned \d;": 4,
    rb"fence\.proxy\.async\.shared::cta;": 2,
    rb"bar\.sync\s+0;": 1,
    rb"bar\.warp\.sync\s+-1;": 3,
}
#: Of the two fences after the barriers' birth either is enough: (pattern, which).
HARMLESS = {(rb"fence\.proxy\.async\.shared::cta;", 0)}


def _entry(module: bytes) -> tuple[int, int]:
    """Where the kernel's text lies in the module."""
    start = module.index(b".entry " + ENTRY + b"(")
    return start, module.index(b".entry ", start + 1)


def _places(module: bytes, pattern: bytes) -> list[re.Match[bytes]]:
    start, end = _entry(module)
    return [found for found in re.finditer(pattern, module) if start <= found.start() < end]


@pytest.fixture
def module(played: str) -> bytes:
    if played != "sm_90":
        pytest.skip("test_hopper.py runs them on sm_90")
    return Path(_native.module().__file__).read_bytes()


@pytest.fixture
def problem() -> Problem:
    """More tiles than places in the ring, empty slots, limits, and two warpgroups with rows."""
    return Problem(70, 11 * 64 + 1, 64, torch.bfloat16, limit=True)


def _loaded(code: bytes, folder: Path) -> ModuleType:
    """A module of this code, beside all others: pybind11 knows a module again by its name."""
    folder.mkdir()
    path = folder / "_cuda.so"
    path.write_bytes(code)
    spec = importlib.util.spec_from_file_location(f"{folder.name}._cuda", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _right(problem: Problem) -> None:
    found = bank_lse(problem.query, problem.bank, torch.tensor([14.3]), problem.match, Want((0,)))
    assert_sums(problem, found, expected(problem, (14.3,), Want((0,))))


def _mutants(module: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    for pattern in ORDERING:
        for number, place in enumerate(_places(module, pattern)):
            blank = b" " * (place.end() - place.start())
            yield pattern, number, module[: place.start()] + blank + module[place.end() :]


def test_every_one_is_found(module: bytes) -> None:
    assert {pattern: len(_places(module, pattern)) for pattern in ORDERING} == ORDERING


def test_without_any_one_of_them_it_is_noticed(
    module: bytes, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _right(problem)
    missed = set()
    for pattern, number, code in _mutants(module):
        faulty = _loaded(code, tmp_path / f"faulty{len(list(tmp_path.iterdir()))}")
        assert faulty is not _native.module()
        monkeypatch.setattr(_native, "module", lambda faulty=faulty: faulty)
        before = cuda.report()[0]
        try:
            _right(problem)
            missed.add((pattern, number))
        except (AssertionError, RuntimeError):  # numbers, or what the driver said
            pass
        assert cuda.launched(before)[0] == ENTRY.decode()
    assert missed == HARMLESS, missed ^ HARMLESS
