"""Native top-k, in-batch negatives and ring writes against the blocked PyTorch backend in fp64."""

import os
import signal
import threading

import pytest
import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.bank_lse import bank_lse
from sede_kernels.backends.cpu.batch_lse import batch_lse, batch_lse_backward, batch_lse_kept
from sede_kernels.backends.cpu.enqueue import enqueue
from sede_kernels.backends.cpu.hardest import hardest
from sede_kernels.backends.torch import batch_lse as blocked_batch
from sede_kernels.backends.torch import enqueue as blocked_enqueue
from sede_kernels.backends.torch import hardest as blocked_hardest
from sede_kernels.types import Bank, Match, RingState, Want

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def ids(count: int, groups: int, seed: int, empty: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, groups, (count,), generator=generator) + (1 << 33)
    return values.masked_fill(torch.rand(count, generator=generator) < empty, -1)


@pytest.mark.parametrize("k", [1, 5, 64, 700])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_hardest(isa: str, k: int, masked: bool) -> None:
    query, bank = unit(37, 24), unit(611, 24, seed=1)
    bank[300:310] = bank[20:30]  # ties
    query_ids, bank_ids = (ids(37, 9, 2), ids(611, 9, 3, empty=0.3)) if masked else (None, None)
    wide = query.double(), Bank(bank.double(), ids=bank_ids), query_ids, k
    values, indices = hardest(query, Bank(bank, ids=bank_ids), query_ids, k)
    want, places = blocked_hardest.hardest(*wide)
    torch.testing.assert_close(values.double(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(indices, places)
    exact, exact_places = hardest(*wide)
    torch.testing.assert_close(exact, want, rtol=1e-12, atol=1e-14)
    assert torch.equal(exact_places, places)


NOTHING = torch.empty(0)


@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (37, 24), (150, 65)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batch_lse(isa: str, select: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    query, key = unit(*shape).to(dtype), unit(*shape, seed=1).to(dtype)
    scales = torch.tensor([14.0, 3.0], dtype=dtype)
    grad_scales = torch.tensor([12.0, -2.0], dtype=dtype)
    grad = unit(2, shape[0], seed=4).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11}
    tolerance.setdefault("atol", 1e-11)
    s = (query @ key.T).sort(dim=1).values
    middle = s[:, shape[0] // 2 : shape[0] // 2 + 2].mean(dim=1) + 1e-3
    for query_ids in (None, ids(shape[0], 5, 2, empty=0.3)):
        for limit in (None, middle):
            run = Want(moments=True, hardest=True)
            match = Match(query_ids, limit, select)
            got = batch_lse(query, key, scales, match, run, keep=True)
            assert got.kept.numel() == batch_lse_kept(query, key) >= shape[0] ** 2
            wide = [t.double() for t in (query, key, scales)]
            wide_match = match._replace(limit=None if limit is None else limit.double())
            want = blocked_batch.batch_lse(*wide, wide_match, run, keep=True)
            for a, b in zip(got[:-1], want[:-1], strict=True):
                torch.testing.assert_close(a.double(), b.double(), **tolerance)
            sides = [
                batch_lse_backward(grad, got.lse, kept, query, key, scales, grad_scales, match)
                for kept in (NOTHING, got.kept)
            ]
            wanted = blocked_batch.batch_lse_backward(
                grad.double(), want.lse, want.kept, *wide, grad_scales.double(), wide_match
            )
            for side in sides:
                for a, b in zip(side, wanted, strict=True):
                    torch.testing.assert_close(a.double(), b, **tolerance)


def ring(size: int, dim: int, dtype: torch.dtype) -> RingState:
    scale = torch.zeros(size) if dtype == torch.int8 else None
    rows = torch.zeros(size, dim, dtype=dtype)
    return RingState(rows, scale, torch.full((size,), -1), *(torch.tensor(0) for _ in range(3)))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8],
    ids=str,
)
@pytest.mark.parametrize("normalize", [True, False], ids=["normalize", "as is"])
@pytest.mark.parametrize("keys_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_enqueue(isa: str, dtype: torch.dtype, normalize: bool, keys_dtype: torch.dtype) -> None:
    size, dim = 50, 37
    ours, theirs = ring(size, dim, dtype), ring(size, dim, dtype)
    for step, total in enumerate((7, 30, 20, 50, 113, 0, 1)):
        keys = torch.randn(total, dim, generator=torch.Generator().manual_seed(step))
        if total > 5:
            keys[3] = 0.0
            keys[4] = unit(dim, seed=9)
            keys[5, dim - 1], keys[6, 0] = torch.nan, -torch.inf
        keys = keys.to(keys_dtype)
        key_ids = None if step % 2 else torch.arange(total) + 100 * step
        enqueue(ours, keys, key_ids, normalize)
        blocked_enqueue.enqueue(theirs, keys, key_ids, normalize)
        assert torch.equal(ours[2], theirs[2])
        assert [int(counter) for counter in ours[3:]] == [int(counter) for counter in theirs[3:]]
        assert int(ours[4]) == int((ours[2] != -1).sum())
        # One unit of the stored format: the norm may round the other way.
        unit_of = {torch.int8: 1.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}
        ulp = unit_of.get(dtype, 3e-7)
        difference = (ours[0].double() - theirs[0].double()).abs()
        allowed = ulp if dtype == torch.int8 else ulp * theirs[0].double().abs() + 1e-7
        assert (difference <= allowed).all()
        assert (difference > 0).double().mean() < (0.5 if ulp < 1e-6 else 0.01)
        if ours[1] is not None:
            torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_enqueue_rounds_every_value_as_torch_does(isa: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**31), 2**31, 9973).to(torch.int32)
    special = torch.tensor([0.0, -0.0, 65504.0, 65519.9, 5.96e-8, 2.98e-8, 2.99e-8])
    numbers = torch.cat([bits.view(torch.float32), special])
    numbers = numbers[numbers.to(dtype).isfinite()]  # a row with any other becomes a hole
    keys = numbers[: numbers.shape[0] // 20 * 20].view(-1, 20)
    store = ring(keys.shape[0], 20, dtype)
    enqueue(store, keys, None, normalize=False)
    assert torch.equal(store[0], keys.to(dtype))
    assert int(store[4]) == keys.shape[0] and int(store[5]) == 0
    largest = float(torch.finfo(dtype).max)
    beyond = torch.tensor(
        [[largest * (1 + 2.0**-12), 65520.0 if dtype == torch.float16 else 3.4e38]]
    )
    for number, held in ((beyond[0, 0], True), (beyond[0, 1], False)):
        store = ring(1, 1, dtype)
        enqueue(store, number.view(1, 1), None, normalize=False)
        assert (int(store[4]), int(store[5])) == (int(held), int(not held))
        assert bool(number.to(dtype).isfinite()) == held


def test_enqueue_into_strided_rows(isa: str) -> None:
    base = torch.zeros(12, 30)
    keys = unit(5, 10)
    store = ring(12, 10, torch.float32)
    store = store._replace(rows=base[:, ::3])
    enqueue(store, keys, None, normalize=False)
    assert torch.equal(base[:5, ::3], keys)
    assert base[:, 1::3].abs().sum() == 0


QUERY, BANK = unit(40, 64), unit(6000, 64, seed=1)


def small_call() -> Tensor:
    query, bank = QUERY, BANK
    return bank_lse(query, Bank(bank), torch.tensor([14.0]), Match(), Want((0,))).acc


def test_several_python_threads() -> None:
    want = small_call()
    results: list[Tensor] = []

    def work() -> None:
        results.extend(small_call() for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(torch.equal(result, want) for result in results)


def test_fork_after_use() -> None:
    want = small_call()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a deadlock must not hold the suite up
        os._exit(0 if torch.equal(small_call(), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_own_pool_gives_the_same_bits() -> None:
    module = _native.module()
    want = small_call()
    try:
        module.set_parallel_for(0)
        for threads in (1, 3, 2):
            module.set_pool_threads(threads)
            assert torch.equal(small_call(), want)
    finally:
        module.set_pool_threads(0)
        module.set_parallel_for(_native._torch_parallel_for())


def test_torchs_parallel_for_is_used() -> None:
    assert _native._torch_parallel_for() != 0
