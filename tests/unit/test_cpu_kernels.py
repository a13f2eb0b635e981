"""Native CPU kernels against plain fp64 PyTorch: every option, odd sizes, every instruction set."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import reference
from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.bank_lse import bank_lse
from sede_kernels.types import Bank, Match, Want, result_dtype

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)

SCALES = (14.0, 2.0, 16.0)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def oracle(query, bank, row_scale, scales, query_ids, bank_ids, limit, select, accumulate):
    """lse, moment, acc, count, top, top_index with every similarity written out in fp64."""
    q, m, c = query.double(), bank.double(), scales.double()
    if row_scale is not None:
        m = m * row_scale.double()[:, None]
    valid = reference.valid_slots(q, m, query_ids, bank_ids, select)
    if bank_ids is not None:
        m = m.masked_fill((bank_ids == -1)[:, None], 0.0)
    s = q @ m.T
    if limit is not None:
        valid = valid & (s <= limit.double()[:, None])
    logits = (c[:, None, None] * s).masked_fill(~valid, -torch.inf)
    lse = logits.logsumexp(dim=2)
    p = (logits - lse.masked_fill(lse == -torch.inf, 0.0)[:, :, None]).exp()
    moment = (p * s).sum(dim=2)
    acc = torch.stack([p[a] @ m for a in accumulate]) if accumulate else s.new_zeros(0, *q.shape)
    padded = torch.cat(
        [s.masked_fill(~valid, -torch.inf), s.new_full((q.shape[0], 1), -torch.inf)], 1
    )
    top, top_index = padded.max(dim=1)
    return lse, moment, acc, valid.sum(dim=1), top, top_index.masked_fill(top == -torch.inf, -1)


def check(
    query,
    bank,
    *,
    row_scale=None,
    scales=SCALES,
    query_ids=None,
    bank_ids=None,
    limit=None,
    select="mask",
    accumulate=(0, 1),
    moments=True,
    hardest=True,
    tolerance=None,
):
    dtype = result_dtype(query)
    c = torch.tensor(scales, dtype=dtype)
    got = bank_lse(
        query,
        Bank(bank, row_scale, bank_ids),
        c,
        Match(query_ids, limit, select),
        Want(accumulate, moments, hardest),
    )
    want = oracle(query, bank, row_scale, c, query_ids, bank_ids, limit, select, accumulate)
    rtol = tolerance or (1e-12 if dtype == torch.float64 else 4e-6)
    names = ("lse", "moment", "acc", "count", "top", "top_index")
    skipped = set() if moments else {"moment"}
    skipped |= set() if hardest else {"top", "top_index"}
    for name, a, b in zip(names, got, want, strict=True):
        if name in skipped:
            assert a.numel() == 0
        elif name in ("count", "top_index"):
            assert torch.equal(a, b), name
        else:
            torch.testing.assert_close(
                a.double(), b, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}"
            )
    return got


SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (17, 130, 33),
    (40, 300, 300),
    (130, 70, 64),
    (5, 0, 8),
    (0, 9, 8),
    (200, 1000, 48),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    b, k, d = shape
    check(unit(b, d).to(dtype), unit(k, d, seed=1).to(dtype))


def ids(count: int, groups: int, seed: int, empty: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, groups, (count,), generator=generator) + (1 << 33)
    return values.masked_fill(torch.rand(count, generator=generator) < empty, -1)


@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("limited", [False, True], ids=["all", "limit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masks(isa: str, select: str, limited: bool, dtype: torch.dtype) -> None:
    query, bank = unit(37, 24).to(dtype), unit(411, 24, seed=1).to(dtype)
    # Midway between two similarities, so that rounding cannot decide who is inside.
    limit = (query @ bank.T).sort(dim=1).values[:, 200:202].mean(dim=1) if limited else None
    check(
        query,
        bank,
        query_ids=ids(37, 9, 2),
        bank_ids=ids(411, 9, 3, empty=0.3),
        limit=limit,
        select=select,
    )
    check(query, bank, bank_ids=ids(411, 9, 3, empty=0.3), limit=limit, select=select)


@pytest.mark.parametrize("scales", [(), (14.0,), (0.0, 5.0), (1000.0, 3.0, 0.5)], ids=str)
@pytest.mark.parametrize("accumulate", [(), (0,), (1, 0), (2, 1)], ids=str)
def test_scales(isa: str, scales: tuple[float, ...], accumulate: tuple[int, ...]) -> None:
    if any(a >= len(scales) for a in accumulate):
        pytest.skip("no such exponent")
    for moments, hardest in itertools.product([False, True], repeat=2):
        check(
            unit(19, 40),
            unit(523, 40, seed=1),
            scales=scales,
            accumulate=accumulate,
            moments=moments,
            hardest=hardest,
            tolerance=2e-4 if 1000.0 in scales else None,
        )


def test_growing_similarities_rescale(isa: str) -> None:
    """Ever larger similarities, far beyond the headroom of the running reference."""
    query = unit(33, 16, seed=5)
    bank = unit(2000, 16, seed=6) * torch.linspace(0.1, 40.0, 2000)[:, None]
    check(query, bank, scales=(20.0, 3.0), tolerance=2e-4)
    check(query.double(), bank.double(), scales=(20.0, 3.0))
    check(
        query,
        bank,
        scales=(20.0, 3.0),
        query_ids=ids(33, 5, 1),
        bank_ids=ids(2000, 5, 2),
        tolerance=2e-4,
    )


@pytest.mark.parametrize("layout", ["transposed", "strided", "columns", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layouts(isa: str, layout: str, dtype: torch.dtype) -> None:
    bank = unit(333, 45, seed=1).to(dtype)
    views = {
        "transposed": lambda: bank.T.contiguous().T,
        "strided": lambda: torch.stack([bank, -bank], dim=1).view(666, 45)[::2],
        "columns": lambda: torch.stack([bank, -bank], dim=2).view(333, 90)[:, ::2],
        "offset": lambda: torch.cat([bank[:1], bank])[1:],
    }
    view = views[layout]()
    assert torch.equal(view, bank)
    check(unit(21, 90)[:, ::2], view)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_bank_dtypes_with_float_query(isa: str, dtype: torch.dtype) -> None:
    check(unit(35, 72), unit(400, 72, seed=1).to(dtype))


def test_int8_bank(isa: str) -> None:
    bank = unit(400, 72, seed=1)
    scale = bank.abs().amax(dim=1) / 127
    scale[7] = 0.0
    rows = (bank / scale.clamp(min=1e-9)[:, None]).round().clamp(-127, 127).to(torch.int8)
    check(unit(35, 72), rows, row_scale=scale)
    check(unit(35, 72).double(), rows, row_scale=scale)


def test_nan_stays_in_its_row(isa: str) -> None:
    query, bank = unit(40, 20), unit(300, 20, seed=1)
    query[5, 3] = torch.nan
    clean = query.clone()
    clean[5] = 0
    scales = torch.tensor([14.0])
    run = Want((0,), moments=True, hardest=True)
    got = bank_lse(query, Bank(bank), scales, Match(), run)
    want = bank_lse(clean, Bank(bank), scales, Match(), run)
    rows = torch.arange(40) != 5
    for name, a, b in zip(("lse", "moment", "acc"), got, want, strict=False):
        assert a[:, 5].isnan().all(), name
        assert torch.equal(a[:, rows], b[:, rows]), name
    assert got.hardest[5].isnan()
    assert torch.equal(got.hardest[rows], want.hardest[rows])


def test_empty_slots_may_hold_anything(isa: str) -> None:
    query, bank = unit(10, 12), unit(100, 12, seed=1)
    bank_ids = ids(100, 50, 3, empty=0.5)
    bank[bank_ids == -1] = torch.nan
    check(query, bank.nan_to_num(0.0), bank_ids=bank_ids)
    got = bank_lse(query, Bank(bank, ids=bank_ids), torch.tensor([9.0]), Match(), Want((0,)))
    assert not got.lse.isnan().any()
    assert not got.acc.isnan().any()
    bank_ids.fill_(-1)
    check(query, bank.nan_to_num(0.0), bank_ids=bank_ids)


def test_bitwise_equal_runs_and_thread_counts() -> None:
    query, bank = unit(96, 128), unit(20000, 128, seed=1)
    scales = torch.tensor([14.0, 3.0])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4, 2):
            torch.set_num_threads(threads)
            want = Want((0, 1), moments=True, hardest=True)
            results.append(bank_lse(query, Bank(bank), scales, Match(), want))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_unknown_isa_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"SEDE_CPU_ISA must be auto or one of scalar.*'sse9'"):
        _native.module().select_isa("sse9")


@pytest.mark.parametrize("shape", [(3, 5, 7), (33, 131, 64), (70, 1000, 45)], ids=str)
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_bf16_query(isa: str, shape: tuple[int, int, int], kind: str) -> None:
    """Weights in bf16 (relative 2^-9), sums in fp32; exact ids, counts and maxima otherwise."""
    b, k, d = shape
    query, bank = unit(b, d).bfloat16(), unit(k, d, seed=1)
    scale = None
    if kind == "int8":
        scale = bank.abs().amax(dim=1) / 127
        bank = (bank / scale[:, None]).round().to(torch.int8)
    else:
        bank = bank.bfloat16()
    options = {"row_scale": scale, "query_ids": ids(b, 9, 2), "bank_ids": ids(k, 9, 3, empty=0.2)}
    check(query, bank, tolerance=4e-3, **options)
    if kind == "bf16":
        check(query, bank.T.contiguous().T, tolerance=4e-3, **options)
