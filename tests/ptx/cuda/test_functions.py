"""The public functions with backend="cuda" against the reference in fp64."""

import threading

import pytest
import torch
from torch import Tensor

import sede_kernels
from sede_kernels import BackendUnavailableError, MemoryBank, functional
from sede_kernels.backends import registry
from sede_kernels.types import RingState
from tests.ptx.cuda.oracle import assert_close, unit

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FLOORS = {F32: 5e-6, BF16: 8e-3, F16: 1e-3}
OPTIONS = {
    "plain": {},
    "weighted": {"hardness": 3.0},
    "attached": {"hardness": 3.0, "detach_weights": False, "margin": 0.3},
    "positives": {"hardness": 2.0, "false_negatives": "positive", "tau_plus": 0.1},
    "focus": {"false_negatives": "keep", "positive_focus": 1.0},
}


def ids(rows: int, seed: int, low: int = 0) -> Tensor:
    return torch.randint(low, 6, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "batch"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_weighted_info_nce(name: str, in_batch: bool, dtype: torch.dtype) -> None:
    query, key, bank = unit(6, 24, 1).to(dtype), unit(6, 24, 2).to(dtype), unit(70, 24, 3).to(dtype)
    named = {"query_ids": ids(6, 4), "bank_ids": ids(70, 5, low=-1)}
    found = {}
    for backend, to in (("cuda", dtype), ("reference", torch.float64)):
        q, k = query.to(to).requires_grad_(), key.to(to).requires_grad_()
        tau = torch.tensor(0.1, dtype=torch.promote_types(to, F32), requires_grad=True)
        loss = functional.weighted_info_nce(
            q, k, bank.to(to), temperature=tau, in_batch_negatives=in_batch, backend=backend,
            **named, **OPTIONS[name],
        )  # fmt: skip
        found[backend] = loss.detach(), *torch.autograd.grad(loss, (q, k, tau))
    pairs = zip(("loss", "dq", "dk", "dtau"), found["cuda"], found["reference"], strict=True)
    for what, value, truth in pairs:
        assert_close(what, value, truth, FLOORS[dtype])


def test_both_directions_of_a_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = unit(6, 24, 11), unit(6, 24, 12)
    losses = {}
    for backend in ("cuda", "torch"):
        monkeypatch.setenv("SEDE_BACKEND", backend)
        criterion = sede_kernels.SEDELoss(size=20, dim=24)
        for step in range(3):
            query = image.clone().requires_grad_()
            loss = criterion(query, text, image_key=image, text_key=text, ids=ids(6, step))
            losses.setdefault(backend, []).append((loss.detach(), *_gradient(loss, query)))
    for ours, plain in zip(losses["cuda"], losses["torch"], strict=True):
        assert_close("loss", ours[0], plain[0], 5e-6)
        assert_close("gradient", ours[1], plain[1], 5e-6)


def _gradient(loss: Tensor, query: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, query, allow_unused=False)


@pytest.mark.parametrize("dtype", [F32, BF16, torch.int8], ids=str)
def test_ring_writes_equal_those_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    banks = {name: MemoryBank(20, 24, dtype=dtype) for name in ("cuda", "torch")}
    for step in range(4):
        keys = unit(13, 24, step) * 3
        keys[step] = torch.nan
        for name, bank in banks.items():
            monkeypatch.setenv("SEDE_BACKEND", name)
            bank.enqueue(keys, torch.arange(13) + step)
    ours, theirs = (banks[name].state_dict() for name in ("cuda", "torch"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if value.dtype in (F32, BF16):  # a square root's last bit
            assert_close(key, ours[key], value, 1e-6 if value.dtype == F32 else 8e-3)
        else:
            assert torch.equal(ours[key], value), key


def test_a_damaged_pointer_stays_inside() -> None:
    from sede_kernels.backends.cuda.enqueue import enqueue

    rows, names = torch.zeros(5, 8), torch.full((5,), -1)
    ptr, count, rejected = (torch.tensor(value) for value in (-7, 0, 0))
    ring = RingState(rows, None, names, ptr, count, rejected)
    enqueue(ring, unit(2, 8, 1), None, True)
    assert names.tolist() == [-1, -1, -1, -2, -2] and int(ptr) == 0 and int(count) == 2


@pytest.mark.parametrize("k", [1, 5, 64, 100])
@pytest.mark.parametrize("chunks", [1, 3])
def test_hardest_negatives(k: int, chunks: int) -> None:
    from sede_kernels.backends.cuda import _native

    query, bank = unit(4, 24, 21), unit(150, 24, 22)
    bank[140] = bank[3]  # a tie: the lower index first
    named = {"query_ids": ids(4, 23), "bank_ids": ids(150, 24, low=-1)}
    _native.module().set_chunk(*((0, 64) if chunks > 1 else (1 << 22, 1024)))
    try:
        values, indices = functional.hardest_negatives(query, bank, k, backend="cuda", **named)
    finally:
        _native.module().set_chunk(1 << 22, 1024)
    truth = functional.hardest_negatives(
        query.double(), bank.double(), k, backend="reference", **named
    )
    assert_close("values", values, truth[0], 2e-6)
    assert torch.equal(indices, truth[1])


def test_hardest_beyond_what_counts() -> None:
    values, indices = functional.hardest_negatives(
        unit(3, 8, 1), unit(4, 8, 2), 6, query_ids=torch.zeros(3, dtype=torch.int64),
        bank_ids=torch.tensor([0, -1, 2, 3]), backend="cuda",
    )  # fmt: skip
    assert (values[:, 2:] == -torch.inf).all() and (indices[:, 2:] == -1).all()
    assert set(indices[:, :2].flatten().tolist()) == {2, 3}


def test_more_than_a_block_can_sort_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="at most 1024 rows a query, got k=1025"):
        functional.hardest_negatives(unit(2, 8, 1), unit(2000, 8, 2), 1025, backend="cuda")


RULES = [("mean", None), ("prob", None), ("absolute", 0.02), ("relative", 0.5), ("topk", 5),
         ("quantile", 0.6)]  # fmt: skip


@pytest.mark.parametrize(("rule", "threshold"), RULES, ids=[rule for rule, _ in RULES])
@pytest.mark.parametrize("erase", ["low", "high"])
@pytest.mark.parametrize("length", [1, 37, 1100])
def test_attention_erase(rule: str, threshold: float | None, erase: str, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    attention = torch.randn(6, length, generator=generator).softmax(1)
    lengths = torch.randint(0, length + 1, (6,), generator=generator)
    weight = torch.randn(6, length, generator=generator)
    options = {"rule": rule, "threshold": threshold, "erase": erase, "lengths": lengths}
    found = []
    for backend, to in (("cuda", F32), ("reference", F32)):
        a = attention.to(to).requires_grad_()
        out, mask = functional.attention_erase(a, keep_min=2, backend=backend, **options)
        found.append((out.detach(), mask, *torch.autograd.grad((out * weight).sum(), a)))
    ours, truth = found
    assert torch.equal(ours[1], truth[1])
    assert_close("attention", ours[0], truth[0], 1e-6)
    assert_close("gradient", ours[2], truth[2], 5e-6)


@pytest.mark.parametrize("erase", ["low", "high"])
@pytest.mark.parametrize("length", [300, 1100])
def test_rows_of_zeros_and_rows_that_are_topped_up(length: int, erase: str) -> None:
    """By half of their fragments, of equal ones the first."""
    attention = torch.rand(5, length, generator=torch.Generator().manual_seed(2)).round(decimals=2)
    attention[1], attention[3] = 0.0, 0.25
    weight = torch.rand(5, length, generator=torch.Generator().manual_seed(3))
    found = []
    for backend in ("cuda", "reference"):
        a = attention.clone().requires_grad_()
        out, mask = functional.attention_erase(
            a, rule="absolute", threshold=0.1, erase=erase, keep_min=length // 2, backend=backend
        )
        found.append((mask, out.detach(), *torch.autograd.grad((out * weight).sum(), a)))
    assert torch.equal(found[0][0], found[1][0])
    for value, truth in zip(found[0][1:], found[1][1:], strict=True):
        assert_close("erased", value, truth, 5e-6)


def test_bf16_attention_and_no_renormalising() -> None:
    attention = torch.randn(5, 40, generator=torch.Generator().manual_seed(3)).softmax(1).to(BF16)
    ours = functional.attention_erase(attention, renormalize=False, backend="cuda")
    truth = functional.attention_erase(attention, renormalize=False, backend="torch")
    assert torch.equal(ours[0], truth[0]) and torch.equal(ours[1], truth[1])


#: Ops of the registry that this backend leaves to others.
WITHOUT = {
    "block_scores", "count_below",
    "cross_attention", "cross_attention_kept", "cross_attention_backward",
    "cross_attention_pairs", "cross_attention_pairs_backward",
    "late_interaction", "late_interaction_kept", "late_interaction_backward",
    "late_interaction_pairs", "late_interaction_pairs_backward",
}  # fmt: skip


@pytest.mark.parametrize("op", registry.FILES)
def test_an_op_without_a_kernel_is_refused(op: str) -> None:
    if op in WITHOUT:
        with pytest.raises(BackendUnavailableError, match=f"has no {op} kernel"):
            registry.serving(op, "cuda", torch.zeros(2, 2))
    else:
        assert registry.serving(op, "cuda", torch.zeros(2, 2)) == "cuda"


@pytest.mark.parametrize("attention", ["softmax", "max"])
@pytest.mark.parametrize("aligned", [False, True], ids=["all", "pairs"])
def test_region_word_similarities_are_refused(
    aligned: bool, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the backend: the call or the environment."""
    regions, words = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    call = functional.cross_attention_similarity
    if aligned:
        call, regions, words = functional.cross_attention_pairs, regions[:, None], words[:, None]
    with pytest.raises(BackendUnavailableError, match=r"has no \w+ kernel"):
        call(regions, words, attention=attention, backend="cuda")
    monkeypatch.setenv("SEDE_BACKEND", "cuda")
    with pytest.raises(BackendUnavailableError, match=r"has no \w+ kernel"):
        call(regions, words, attention=attention)


def test_what_it_has_no_kernel_for_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match=r"has no kernel for torch\.float64"):
        functional.bank_lse(
            unit(2, 8, 1).double(), unit(3, 8, 2).double(), torch.tensor([1.0]), backend="cuda"
        )


def test_a_thread_that_has_no_context_of_the_gpu_gets_one() -> None:
    """As those in which autograd runs the backward."""
    attention = torch.rand(3, 9).softmax(1)
    found = []

    def erase() -> None:
        found.append(functional.attention_erase(attention, rule="mean", backend="cuda")[1])

    thread = threading.Thread(target=erase)
    thread.start()
    thread.join()
    assert torch.equal(found[0], functional.attention_erase(attention, backend="reference")[1])
