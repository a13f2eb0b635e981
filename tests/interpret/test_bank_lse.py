"""The pass over the bank on the interpreter against sede_kernels.reference in fp64."""

import oracle
import pytest
import torch

from sede_kernels import functional, reference
from sede_kernels.backends.triton import _chunks
from sede_kernels.backends.triton import bank_lse as bank_module
from sede_kernels.ops.bank_lse import STATIC_LIMIT, bank_lse
from sede_kernels.types import Bank, Match, Want

SHAPES = [(1, 1, 1), (17, 130, 40), (5, 70, 100)]
SHAPE_IDS = [f"B{b}-K{k}-D{d}" for b, k, d in SHAPES]
NAMES = ("lse", "moment", "acc", "count", "top")


def _run(query, bank, scales, *, row_scale=None, query_ids=None, bank_ids=None, limit=None, **over):
    options = {"select": "mask", "accumulate": [0], "moments": True, "hardest": True}
    options.update(over)
    match = Match(query_ids, limit, options.pop("select"))
    want = Want(tuple(options.pop("accumulate")), **options)
    bank = Bank(bank, row_scale, bank_ids)
    return bank_lse(query, bank, scales, scales, match, want, None, "triton")


def _truth(query, bank, scales, valid, accumulate):
    """The op's outputs from the definitions, in fp64."""
    s = reference.similarity(query, bank, valid)
    clean = torch.where(valid.any(0)[:, None], bank, 0.0)
    some = valid.any(1)
    lse, moment, acc = [], [], []
    for c in scales:
        logits = (c * s).masked_fill(~valid, -torch.inf).masked_fill(~some[:, None], 0.0)
        p = logits.softmax(1).masked_fill(~some[:, None], 0.0).masked_fill(~valid, 0.0)
        lse.append(reference.masked_logsumexp(c * s, valid))
        moment.append((p * s.masked_fill(~valid, 0.0)).sum(1))
        acc.append(p @ clean)
    masked = s.masked_fill(~valid, -torch.inf)
    top, index = masked.max(1)
    index = index.masked_fill(top == -torch.inf, -1)
    return (
        torch.stack(lse),
        torch.stack(moment),
        torch.stack([acc[a] for a in accumulate])
        if accumulate
        else query.new_zeros(0, *query.shape),
        valid.sum(1),
        top,
        index,
    )


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Variant B takes several chunks, the last one cut short, and several parts of each."""
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", 9000)


#: Variant A, variant B with two accumulators, and the pass that walks D and keeps no rows.
VARIANTS = [(torch.bfloat16, [2]), (torch.float32, [2, 0]), (torch.float32, [])]
VARIANT_IDS = ["one-pass", "chunks", "no-rows"]


@pytest.mark.parametrize("dtype,accumulate", VARIANTS, ids=VARIANT_IDS)
@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("B,K,D", SHAPES, ids=SHAPE_IDS)
def test_all_outputs_match_the_definitions(B, K, D, select, dtype, accumulate):
    query, bank = oracle.matrix(B, D, 1, dtype), oracle.matrix(K, D, 2, dtype)
    query_ids, bank_ids = oracle.ids(B, 3), oracle.ids(K, 4, low=-1)
    scales = torch.tensor([14.3, 0.0, 5.0])
    valid = reference.valid_slots(query, bank, query_ids, bank_ids, select)
    s = query.double() @ bank.double().T
    # Half way between two similarities: rounding cannot move one across.
    ordered = s.sort(1).values
    limit = (ordered[:, K // 2] + ordered[:, min(K // 2 + 1, K - 1)]) / 2 + 1e-5
    valid &= s <= limit[:, None]
    found = _run(
        query, bank, scales, query_ids=query_ids, bank_ids=bank_ids, limit=limit.float(),
        select=select, accumulate=accumulate,
    )  # fmt: skip
    truth = _truth(query.double(), bank.double(), scales.double(), valid, accumulate)
    for name, got, want in zip(NAMES, found, truth, strict=False):
        floor = 2e-6 if name == "top" else oracle.FLOORS[dtype]
        oracle.assert_close(name, got, want, floor)
    assert torch.equal(found[5], truth[5])


def test_wide_rows_and_two_accumulators_in_half_precision():
    for D, accumulate in ((300, [0]), (600, [0]), (40, [1, 0])):
        query = oracle.matrix(5, D, 31, torch.bfloat16)
        bank = oracle.matrix(200, D, 32, torch.bfloat16)
        scales = torch.tensor([14.3, 5.0])
        valid = torch.ones(5, 200, dtype=torch.bool)
        found = _run(query, bank, scales, accumulate=accumulate)
        truth = _truth(query.double(), bank.double(), scales.double(), valid, accumulate)
        for name, got, want in zip(NAMES, found, truth, strict=False):
            oracle.assert_close(name, got, want, oracle.FLOORS[torch.bfloat16])


@pytest.mark.parametrize(
    "query_dtype,bank_dtype",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_dtypes(query_dtype, bank_dtype):
    query, bank = oracle.matrix(5, 64, 5, query_dtype), oracle.matrix(70, 64, 6, bank_dtype)
    scales = torch.tensor([10.0])
    valid = torch.ones(5, 70, dtype=torch.bool)
    truth = _truth(query.double(), bank.double(), scales.double(), valid, [0])
    found = _run(query, bank, scales)
    same = query_dtype == bank_dtype
    floor = oracle.FLOORS[query_dtype] if same else oracle.FLOORS[torch.float32]
    for name, got, want in zip(
        ("lse", "moment", "acc", "count", "top"), found, truth, strict=False
    ):
        oracle.assert_close(name, got, want, 2e-6 if name in ("count", "top") else floor)


@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_bank(query_dtype):
    generator = torch.Generator().manual_seed(7)
    bank = torch.randint(-127, 128, (70, 64), generator=generator).to(torch.int8)
    row_scale = torch.rand(70, generator=generator) / 800
    bank_ids = oracle.ids(70, 8, low=-1)
    row_scale[bank_ids == -1] = torch.nan
    query = oracle.matrix(5, 64, 9, query_dtype)
    dense = bank.double() * row_scale.double()[:, None]
    valid = reference.valid_slots(query, bank, None, bank_ids)
    scales = torch.tensor([20.0])
    truth = _truth(query.double(), dense, scales.double(), valid, [0])
    found = _run(query, bank, scales, row_scale=row_scale, bank_ids=bank_ids)
    floor = oracle.FLOORS[query_dtype]
    for name, got, want in zip(
        ("lse", "moment", "acc", "count", "top"), found, truth, strict=False
    ):
        oracle.assert_close(name, got, want, floor)


BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=VARIANT_IDS[:2])


@BOTH
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_empty_slots_of_nan(dtype, transposed):
    query = oracle.matrix(5, 16, 10, dtype)
    bank = oracle.matrix(16, 40, 11, dtype)  # (D, K), as MoCo keeps it
    if not transposed:
        bank = bank.T.contiguous().T
    bank_ids = oracle.ids(40, 12, low=-1)
    bank[:, bank_ids == -1] = torch.nan
    scales = torch.tensor([14.3])
    valid = reference.valid_slots(query, bank.T, None, bank_ids)
    truth = _truth(query.double(), bank.T.double(), scales.double(), valid, [0])
    found = _run(query, bank.T, scales, bank_ids=bank_ids)
    for name, got, want in zip(
        ("lse", "moment", "acc", "count", "top"), found, truth, strict=False
    ):
        oracle.assert_close(name, got, want, oracle.FLOORS[dtype])


@BOTH
def test_nothing_valid_and_empty_bank(dtype):
    query = oracle.matrix(3, 8, 13, dtype)
    scales = torch.tensor([14.3, 0.0])
    for bank, bank_ids in (
        (oracle.matrix(40, 8, 14, dtype), torch.full((40,), -1)),
        (query[:0], None),
    ):
        lse, moment, acc, count, top, index = _run(query, bank, scales, bank_ids=bank_ids)
        assert torch.equal(lse, torch.full((2, 3), -torch.inf))
        assert not moment.any() and not acc.any() and not count.any()
        assert torch.equal(top, torch.full((3,), -torch.inf)) and (index == -1).all()


@BOTH
def test_a_nan_query_stays_in_its_row(dtype):
    query, bank = oracle.matrix(5, 64, 15, dtype), oracle.matrix(70, 64, 16, dtype)
    clean = _run(query, bank, torch.tensor([14.3]))
    query[2, 3] = torch.nan
    other = [0, 1, 3, 4]
    lse, moment, acc, _, top, index = _run(query, bank, torch.tensor([14.3]))
    assert lse[:, 2].isnan().all() and acc[:, 2].isnan().all() and top[2].isnan() and index[2] == -1
    assert torch.equal(lse[:, other], clean[0][:, other])
    assert torch.equal(moment[:, other], clean[1][:, other])
    assert torch.equal(acc[:, other], clean[2][:, other])
    assert torch.equal(top[other], clean[4][other])


def test_large_similarities_use_the_running_maximum():
    query, bank = oracle.matrix(3, 16, 17) * 40, oracle.matrix(70, 16, 18) * 20
    scales = torch.tensor([30.0])
    valid = torch.ones(3, 70, dtype=torch.bool)
    truth = _truth(query.double(), bank.double(), scales.double(), valid, [0])
    # Logits near 2e4: their own rounding in fp32 is 1e-3.
    found = _run(query, bank, scales)
    oracle.assert_close("lse", found[0], truth[0], 2e-6)
    oracle.assert_close("acc", found[2], truth[2], 2e-2)


def test_repeatable_and_inputs_untouched():
    query, bank = oracle.matrix(5, 64, 19), oracle.matrix(130, 64, 20)
    kept = query.clone(), bank.clone()
    first = _run(query, bank, torch.tensor([14.3, 5.0]), accumulate=[0, 1])
    again = _run(query, bank, torch.tensor([14.3, 5.0]), accumulate=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(query, kept[0]) and torch.equal(bank, kept[1])


@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
def test_weighted_info_nce_through_the_public_function(in_batch):
    query, key, bank = oracle.matrix(5, 16, 21), oracle.matrix(5, 16, 22), oracle.matrix(40, 16, 23)
    query_ids, bank_ids = oracle.ids(5, 24), oracle.ids(40, 25, low=-1)
    options = {
        "hardness": 3.0,
        "detach_weights": False,
        "query_ids": query_ids,
        "bank_ids": bank_ids,
        "in_batch_negatives": in_batch,
        "margin": 0.3,
    }
    grads = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        q = query.clone().to(dtype).requires_grad_()
        k = key.clone().to(dtype).requires_grad_()
        loss = functional.weighted_info_nce(q, k, bank.to(dtype), backend=backend, **options)
        grads[backend] = loss.detach(), *torch.autograd.grad(loss, (q, k))
    for name, got, want in zip(
        ("loss", "dq", "dk"), grads["triton"], grads["reference"], strict=True
    ):
        oracle.assert_close(name, got, want, 5e-6)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
def test_a_fixed_maximum_for_unit_vectors(monkeypatch, select, holes, parts):
    """Rows at s = 1 and -1, the largest exponents, a part without a valid slot."""
    monkeypatch.setattr(bank_module, "parts_of_bank", lambda *_: parts)
    query, bank = oracle.matrix(17, 40, 33, torch.bfloat16), oracle.matrix(150, 40, 34)
    bank = bank.to(torch.bfloat16)
    bank[3], bank[70] = query[2], -query[4]
    bank[100:] = -query[5]  # the last part knows nothing but the least similar for row 5
    query_ids, bank_ids = oracle.ids(17, 35), oracle.ids(150, 36, low=-1 if holes else 0)
    bank[bank_ids == -1] = torch.nan
    scales = torch.tensor([STATIC_LIMIT, 5.0])
    valid = reference.valid_slots(query, bank, query_ids, bank_ids, select)
    found = _run(
        query, bank, scales, query_ids=query_ids, bank_ids=bank_ids, select=select, moments=False,
        hardest=False, unit_length=True,
    )  # fmt: skip
    lse, _, acc, count, *_ = _truth(query.double(), bank.double(), scales.double(), valid, [0])
    for name, got, want in (("lse", found[0], lse), ("acc", found[2], acc), ("n", found[3], count)):
        oracle.assert_close(name, got, want, oracle.FLOORS[torch.bfloat16])


def test_a_fixed_maximum_reaches_the_kernel_only_where_it_is_safe(monkeypatch):
    launched = []
    kernel = bank_module._bank_lse_fwd_kernel

    class Watching:
        def __getitem__(self, grid):
            def run(*args, **options):
                launched.append(options["STATIC"])
                return kernel[grid](*args, **options)

            return run

    monkeypatch.setattr(bank_module, "_bank_lse_fwd_kernel", Watching())

    def static(temperature, dtype=torch.bfloat16, dim=40, **options):
        launched.clear()
        query = oracle.matrix(5, dim, 37, dtype).requires_grad_()
        bank = oracle.matrix(64, dim, 38, dtype)
        functional.weighted_info_nce(
            query, query.detach(), bank, temperature=temperature, backend="triton", **options
        )
        return launched[:]

    assert static(0.05, unit_length=True) == [True]
    assert static(0.05, unit_length=True, hardness=20.0) == [True]
    assert static(0.05) == [False]
    assert static(0.05, unit_length=True, hardness=25.0) == [False], "1 / tau + beta above 43"
    assert static(0.02, unit_length=True) == [False], "1 / tau above 43"
    assert static(torch.tensor(0.05), unit_length=True) == [False], "unknown on the host"
    assert static(0.05, torch.float16, unit_length=True) == [False], "small weights vanish in fp16"
    assert static(0.05, unit_length=True, margin=0.1) == [True]
    assert static(0.05, dim=136, unit_length=True, margin=0.1) == [False], "wide, with statistics"
    ids = torch.arange(64)
    assert static(0.05, unit_length=True, bank_ids=ids) == [True, False], "parts with empty slots"
