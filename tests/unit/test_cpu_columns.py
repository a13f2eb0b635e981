"""A (D, K) queue is read as it lies: every number of queries, holes, margins, against fp64."""

import pytest
import torch

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.bank_lse import bank_lse
from sede_kernels.backends.cpu.hardest import hardest
from sede_kernels.types import Bank, Match, Want
from tests.unit.test_cpu_kernels import check, ids, unit

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)


def queue(rows: torch.Tensor) -> torch.Tensor:
    """The same rows, held as (D, K) with room beyond K."""
    held = torch.full((rows.shape[1], rows.shape[0] + 3), 7, dtype=rows.dtype)
    held[:, : rows.shape[0]] = rows.T
    view = held[:, : rows.shape[0]].T
    assert view.stride() == (1, rows.shape[0] + 3)
    return view


@pytest.mark.parametrize("queries", [1, 2, 5, 8, 12, 13, 16, 29, 33, 130])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "int8"])
def test_every_number_of_queries(isa: str, queries: int, kind: str) -> None:
    query, bank, scale = unit(queries, 37), unit(301, 37, seed=1), None
    if kind == "int8":
        scale = bank.abs().amax(dim=1) / 127
        bank = (bank / scale[:, None]).round().to(torch.int8)
    else:
        bank = bank.to(getattr(torch, kind))
        query = query.to(bank.dtype)
    options = {"row_scale": scale, "tolerance": 4e-3 if kind == "bfloat16" else None}
    check(query, queue(bank), **options)
    options |= {"query_ids": ids(queries, 9, 2), "bank_ids": ids(301, 9, 3, empty=0.3)}
    check(query, queue(bank), **options)
    if kind == "int8":
        check(query.bfloat16(), queue(bank), **options | {"tolerance": 4e-3})


@pytest.mark.parametrize("shape", [(3, 1, 5), (20, 0, 8), (9, 700, 1), (40, 260, 300)], ids=str)
def test_odd_shapes_and_margins(isa: str, shape: tuple[int, int, int]) -> None:
    b, k, d = shape
    query, bank = unit(b, d), unit(k, d, seed=1)
    check(query, queue(bank))
    check(query, queue(bank.half()))
    s = (query @ bank.T).sort(dim=1).values
    if k > 2 and d > 1:
        check(query, queue(bank), limit=s[:, k // 2 : k // 2 + 2].mean(dim=1))


@pytest.mark.parametrize("queries", [3, 20])
def test_growing_similarities_rescale(isa: str, queries: int) -> None:
    bank = unit(900, 16, seed=6) * torch.linspace(0.1, 40.0, 900)[:, None]
    check(unit(queries, 16, seed=5), queue(bank), scales=(20.0, 3.0), tolerance=2e-4)


def test_hardest_and_repeatable_bits(isa: str) -> None:
    query = torch.randint(-8, 9, (21, 40)) / 8  # exact sums: both layouts must agree
    bank = torch.randint(-8, 9, (1000, 40)) / 8
    for k in (1, 30):
        for got, want in zip(
            hardest(query, Bank(queue(bank)), None, k),
            hardest(query, Bank(bank), None, k),
            strict=True,
        ):
            assert torch.equal(got, want)
    want = Want((0,), moments=True, hardest=True)
    calls = [
        bank_lse(query, Bank(queue(bank)), torch.tensor([9.0]), Match(), want) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))
