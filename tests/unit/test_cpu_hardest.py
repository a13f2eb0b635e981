"""Native top-k on sums that are exact in every dtype: ties and order must match a stable sort."""

import pytest
import torch
from torch import Tensor

from sede_kernels import hardest_negatives, ops
from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.hardest import hardest
from sede_kernels.types import Bank

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)


class Own(Tensor):
    """A class that kernels do not know."""


def eighths(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/8 in [-1, 1]: products and their sums are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator) / 8


def ids(count: int, groups: int, seed: int, empty: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, groups, (count,), generator=generator) + (1 << 33)
    return values.masked_fill(torch.rand(count, generator=generator) < empty, -1)


def expected(query, bank, k, query_ids=None, bank_ids=None):
    s = query.double() @ bank.double().T
    if bank_ids is not None:
        s = s.masked_fill(bank_ids == -1, -torch.inf)
        s = s.masked_fill(query_ids[:, None] == bank_ids, -torch.inf)
    s = torch.cat([s.masked_fill(s.isnan(), -torch.inf), s.new_full((len(s), k), -torch.inf)], 1)
    values, order = s.sort(dim=1, descending=True, stable=True)
    values, order = values[:, :k], order[:, :k]
    return values, order.masked_fill(values == -torch.inf, -1)


def check(query, bank, k, *ids_of_both, row_scale=None, dense=None) -> None:
    query_ids, bank_ids = ids_of_both or (None, None)
    values, indices = hardest(query, Bank(bank, row_scale, bank_ids), query_ids, k)
    want, places = expected(query, bank if dense is None else dense, k, *ids_of_both)
    assert torch.equal(values.double(), want)
    assert torch.equal(indices, places)


@pytest.mark.parametrize("k", [1, 3, 10, 17, 100, 499, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_k(isa: str, k: int, dtype: torch.dtype) -> None:
    query, bank = eighths(70, 40, seed=1).to(dtype), eighths(1000, 40, seed=2).to(dtype)
    check(query, bank, k)
    check(query, bank, k, ids(70, 9, 3), ids(1000, 9, 4, empty=0.3))


@pytest.mark.parametrize("queries", [1, 2, 5, 12, 13, 16, 29, 33, 130])
def test_every_number_of_queries(isa: str, queries: int) -> None:
    check(eighths(queries, 21, seed=1), eighths(517, 21, seed=2), 5)


def laid(bank: Tensor, how: str) -> Tensor:
    """The same rows at another place: as columns, with gaps, off by one element, a page apart."""
    rows, dim = bank.shape
    if how == "columns":
        return bank.T.contiguous().T
    if how == "odd":
        return torch.cat([bank.new_zeros(1), bank.flatten()])[1:].view(rows, dim)
    wide = {"rows": dim, "gaps": dim + 32, "page": 2048}[how]
    return torch.cat([bank, bank.new_zeros(rows, wide - dim)], 1)[:, :dim]


@pytest.mark.parametrize("how", ["rows", "gaps", "page", "odd", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_read_where_they_lie(isa: str, dtype: torch.dtype, how: str) -> None:
    """Rows of whole vectors, numbers of rows that end within a tile, and holes."""
    for rows in (3, 128, 301):
        bank = laid(eighths(rows, 64, seed=2).to(dtype), how)
        for queries in (1, 3, 8, 11, 16, 40):
            query = eighths(queries, 64, seed=1).to(dtype)
            for k in (1, 5):
                check(query, bank, k)
                check(query, bank, k, ids(queries, 9, 3), ids(rows, 9, 4, empty=0.1))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dim", [33, 64])
def test_bf16_queries_on_int8_rows(isa: str, dim: int, columns: bool) -> None:
    drawn = torch.Generator().manual_seed(5)
    rows = torch.randint(-127, 128, (300, dim), generator=drawn, dtype=torch.int8)
    scale = 2.0 ** torch.randint(-9, -5, (300,), generator=drawn)
    lying = laid(rows, "columns") if columns else rows
    for queries in (1, 7, 19):
        query = eighths(queries, dim, seed=7).bfloat16()
        for k in (1, 30):
            check(query, lying, k, row_scale=scale, dense=rows.double() * scale.double()[:, None])


def test_slices_of_the_bank_agree(isa: str) -> None:
    """Large enough for several slices, on one thread and on two."""
    query, bank, before = (
        eighths(40, 64, seed=1),
        eighths(9000, 64, seed=2),
        torch.get_num_threads(),
    )
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for k in (1, 40, 300):
                check(query, bank, k)
                check(query.bfloat16(), bank.bfloat16(), k)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("k", [1, 20, 100])
@pytest.mark.parametrize("order", ["rising", "falling", "pipe", "equal"])
def test_sorted_banks(isa: str, order: str, k: int) -> None:
    rising = torch.arange(3000.0)
    places = {
        "rising": rising,
        "falling": -rising,
        "pipe": -(rising - 1500).abs(),
        "equal": rising * 0,
    }
    check(torch.tensor([[0.5, 0.0], [-1.0, 1.0]]), torch.stack([places[order], rising * 0], 1), k)


def test_int8_rows_with_scales(isa: str) -> None:
    rows = torch.randint(-127, 128, (700, 33), generator=torch.Generator().manual_seed(5))
    scale = 2.0 ** torch.randint(-9, -5, (700,), generator=torch.Generator().manual_seed(6))
    rows, query = rows.to(torch.int8), eighths(19, 33, seed=7)
    check(query, rows, 30, row_scale=scale, dense=rows.double() * scale.double()[:, None])


def test_extreme_values(isa: str) -> None:
    """Infinities rank, the two zeros are equal, and nothing is lost at the ends of the range."""
    column = torch.tensor([0.0, -0.0, torch.inf, -1.0, 3e38, torch.inf, -3e38, 1e-38, -torch.inf])
    for dtype in (torch.float32, torch.float64):
        check(torch.ones(1, 1, dtype=dtype), column[:, None].to(dtype), 9)
        check(torch.ones(1, 1, dtype=dtype), column.repeat(50)[:, None].to(dtype), 130)


def test_nan_is_never_among_the_hardest(isa: str) -> None:
    query, bank = eighths(20, 12, seed=1), eighths(300, 12, seed=2)
    bank[::7, 3] = torch.nan
    query[4, 0] = torch.nan
    for k in (1, 40, 400):
        check(query, bank, k)
        check(query.double(), bank.double(), k)
    values, indices = hardest(query, Bank(bank), None, k=2)
    assert values[4].tolist() == [-torch.inf] * 2
    assert indices[4].tolist() == [-1, -1]


def test_plain_tensors_take_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank = eighths(5, 21, seed=1), eighths(70, 21, seed=2)
    query_ids, bank_ids = ids(5, 9, 3), ids(70, 9, 4, empty=0.3)
    seen = []
    look = ops.hardest.at_once
    monkeypatch.setattr(ops.hardest, "at_once", lambda *a: seen.append(look(*a)) or seen[-1])
    monkeypatch.delenv("SEDE_BACKEND", raising=False)
    direct = hardest_negatives(query, bank, 7, query_ids=query_ids, bank_ids=bank_ids)
    assert seen[-1] is not None
    want, places = expected(query, bank, 7, query_ids, bank_ids)
    assert torch.equal(direct[0].double(), want)
    assert torch.equal(direct[1], places)
    # Converted, differentiated or of another backend: not at once, and the same.
    wide = query.clone().requires_grad_()
    for other, ids_of_query in ((query, query_ids.int() * 0 - 5), (wide, query_ids)):
        asked = hardest_negatives(other, bank, 7, query_ids=ids_of_query, bank_ids=bank_ids)
        assert seen[-1] is None
        assert asked[0].requires_grad is other.requires_grad
        if other is wide:
            assert torch.equal(asked[0].detach(), direct[0])
    # Nor are those of a class of their own.
    for own in ((query.as_subclass(Own), bank), (query, bank.as_subclass(Own))):
        asked = hardest_negatives(*own, 7, query_ids=query_ids, bank_ids=bank_ids)
        assert seen[-1] is None
        assert torch.equal(asked[1], places)
    count = len(seen)
    monkeypatch.setenv("SEDE_BACKEND", "torch")
    elsewhere = hardest_negatives(query, bank, 7, query_ids=query_ids, bank_ids=bank_ids)
    assert len(seen) == count
    assert torch.equal(elsewhere[1], places)
