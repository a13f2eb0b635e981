"""Every op on the GPU against the fp64 reference on fresh inputs; eager sets the error budget."""

import problems
import pytest
import torch
from problems import BACKEND
from torch.nn import functional as F

from sede_kernels import MemoryBank, functional, reference
from sede_kernels.testing import assert_within_budget

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1, 8),
    (67, 1003, 100),
    (130, 4099, 256),
    (64, 3000, 512),
    (129, 2500, 768),
    (3, 20_011, 1024),
]
if problems.EMULATED:
    SHAPES = [(1, 1, 8), (67, 400, 100), (70, 300, 256), (3, 900, 1024)]
SHAPE_IDS = [f"B{b}-K{k}-D{d}" for b, k, d in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B,K,D", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_weighted_info_nce(dtype, B, K, D, detach):
    query, key, bank = (
        problems.unit(B, D, dtype),
        problems.unit(B, D, dtype),
        problems.unit(K, D, dtype),
    )
    bank_ids = problems.ids(K, low=-1, high=50)
    bank[bank_ids == -1] = torch.nan
    options = {
        "hardness": 2.0, "detach_weights": detach, "query_ids": problems.ids(B, high=50),
        "bank_ids": bank_ids, "margin": 0.2, "in_batch_negatives": True,
    }  # fmt: skip
    found = problems.loss_and_gradients(query, key, bank, BACKEND, **options)
    inputs = [tensor.double() for tensor in (query, key, bank)]
    truth = problems.loss_and_gradients(*inputs, "reference", **options)
    eager = problems.loss_and_gradients(query, key, bank, "torch", **options)
    for got, want, plain in zip(found, truth, eager, strict=True):
        assert_within_budget(got, want, plain, dtype)


@pytest.mark.parametrize("B,K,D", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("hardness", [0.0, 20.0])
def test_a_fixed_maximum_for_unit_vectors(B, K, D, hardness):
    query, key, bank = (problems.unit(rows, D, torch.bfloat16) for rows in (B, B, K))
    bank[0], bank[-1] = query[0], -query[-1]
    options = {"hardness": hardness, "temperature": 1 / 23, "query_ids": problems.ids(B, high=50),
               "bank_ids": problems.ids(K, low=-1, high=50)}  # fmt: skip
    found = problems.loss_and_gradients(query, key, bank, BACKEND, unit_length=True, **options)
    inputs = [tensor.double() for tensor in (query, key, bank)]
    truth = problems.loss_and_gradients(*inputs, "reference", **options)
    eager = problems.loss_and_gradients(query, key, bank, "torch", **options)
    for got, want, plain in zip(found, truth, eager, strict=True):
        assert_within_budget(got, want, plain, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_memory_bank(dtype, storage):
    slots = problems.size(3001, 301)
    bank = MemoryBank(slots, 320, dtype=storage).to(problems.DEVICE)
    plain = MemoryBank(slots, 320, dtype=storage).to(problems.DEVICE)
    for step, rows in enumerate((700, 1, 0, slots + 999, 513)):
        keys, key_ids = problems.unit(rows, 320, dtype) * (step + 1), problems.ids(rows)
        bank.enqueue(keys, key_ids, backend=BACKEND)
        plain.enqueue(keys, key_ids, backend="torch")
    for (name, got), (_, want) in zip(
        bank.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        if got.dtype == torch.int8:
            assert (got.int() - want.int()).abs().max() <= 1, name
        elif got.is_floating_point():
            assert torch.allclose(got, want, rtol=1e-2 if got.element_size() < 4 else 1e-6), name
        else:
            assert torch.equal(got, want), name
    query = problems.unit(65, 320, dtype)
    scales = [14.3, 5.0, 0.0]
    found = functional.bank_lse(query, bank, scales, backend=BACKEND)
    plain_lse = functional.bank_lse(query, bank, scales, backend="torch")
    truth = functional.bank_lse(query.double(), bank, scales, backend="torch")
    assert_within_budget(found, truth, plain_lse, dtype)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hardest_negatives(k, dtype):
    slots = problems.size(5003, 403)
    query, bank = problems.unit(67, 200, dtype), problems.unit(slots, 200, dtype)
    query_ids, bank_ids = problems.ids(67, high=30), problems.ids(slots, low=-1, high=30)
    values, indices = functional.hardest_negatives(
        query, bank, k, query_ids=query_ids, bank_ids=bank_ids, backend=BACKEND
    )
    truth, _ = reference.hardest_negatives(query.double(), bank.double(), k, query_ids, bank_ids)
    assert torch.allclose(values.double(), truth, atol=1e-6)
    exact = (query.double() @ bank.double().T).gather(1, indices)
    assert torch.allclose(exact, truth, atol=1e-6)
    assert (bank_ids[indices] != query_ids[:, None]).all() and (bank_ids[indices] != -1).all()


RULES = [
    ("mean", None),
    ("prob", None),
    ("absolute", 0.01),
    ("relative", 0.5),
    ("topk", 5),
    ("quantile", 0.3),
]


@pytest.mark.parametrize("rule,threshold", RULES, ids=[rule for rule, _ in RULES])
@pytest.mark.parametrize("fragments", [1, 36, 300, 4096])
def test_attention_erase(rule, threshold, fragments):
    attention = torch.randn(33, fragments, device=problems.DEVICE).mul(2).softmax(1)
    lengths = torch.randint(0, fragments + 1, (33,), device=problems.DEVICE)
    options = {"rule": rule, "lengths": lengths, "keep_min": 1}
    value = min(threshold, fragments) if rule == "topk" else threshold
    x, y = attention.clone().requires_grad_(), attention.double().requires_grad_()
    found, mask = functional.attention_erase(x, threshold=value, backend=BACKEND, **options)
    truth, kept = functional.attention_erase(y, threshold=value, backend="reference", **options)
    assert torch.equal(mask, kept)
    assert_within_budget(found, truth)
    weight = torch.randn_like(truth)
    (got,) = torch.autograd.grad(found, x, weight.float())
    (want,) = torch.autograd.grad(truth, y, weight)
    assert_within_budget(got, want, dtype=torch.bfloat16)


@problems.of_triton
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("erase", [None, "mean"])
def test_cross_attention_similarity(direction, erase):
    regions = F.normalize(torch.randn(9, 36, 256, device=problems.DEVICE), dim=-1)
    words = F.normalize(torch.randn(7, 21, 256, device=problems.DEVICE), dim=-1)
    lengths = torch.randint(1, 22, (7,), device=problems.DEVICE)
    outcome = {}
    for backend, dtype in (
        ("triton", torch.float32),
        ("torch", torch.float32),
        ("reference", torch.float64),
    ):
        r, w = regions.to(dtype).requires_grad_(), words.to(dtype).requires_grad_()
        score = functional.cross_attention_similarity(
            r, w, word_lengths=lengths, direction=direction, erase=erase, backend=backend
        )
        outcome[backend] = score.detach(), *torch.autograd.grad(score.square().sum(), (r, w))
    for got, plain, want in zip(
        *(outcome[name] for name in ("triton", "torch", "reference")), strict=True
    ):
        assert_within_budget(got, want, plain)


@problems.of_triton
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("ask", ["images", "captions"])
def test_cross_attention_pairs(direction, ask):
    sides = {"images": (1, 5), "captions": (5, 1)}[ask]
    regions = F.normalize(torch.randn(9, sides[0], 36, 256, device=problems.DEVICE), dim=-1)
    words = F.normalize(torch.randn(9, sides[1], 21, 256, device=problems.DEVICE), dim=-1)
    lengths = torch.randint(1, 22, (9, sides[1]), device=problems.DEVICE)
    outcome = {}
    for backend, dtype in (
        ("triton", torch.float32),
        ("torch", torch.float32),
        ("reference", torch.float64),
    ):
        r, w = regions.to(dtype).requires_grad_(), words.to(dtype).requires_grad_()
        score = functional.cross_attention_pairs(
            r, w, word_lengths=lengths, direction=direction, erase="mean", backend=backend
        )
        outcome[backend] = score.detach(), *torch.autograd.grad(score.square().sum(), (r, w))
    for got, plain, want in zip(
        *(outcome[name] for name in ("triton", "torch", "reference")), strict=True
    ):
        assert_within_budget(got, want, plain)


def test_tf32_where_torch_allows_it():
    torch.set_float32_matmul_precision("high")
    bank = problems.unit(problems.size(4096, 400), 256)
    query, key = problems.unit(64, 256), problems.unit(64, 256)
    found = problems.loss_and_gradients(query, key, bank, BACKEND)
    truth = problems.loss_and_gradients(query.double(), key.double(), bank.double(), "reference")
    for got, want in zip(found, truth, strict=True):
        assert_within_budget(got, want, dtype=torch.bfloat16)


@pytest.mark.parametrize("B,D", [(60, 256), (130, 128), (130, 256), (60, 512)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_two_banks_at_once_equal_one_after_the_other(B, D, dtype):
    """One launch, or two where the joint tile is smaller; 512 columns go in chunks."""
    sides = [problems.unit(B, D, dtype) for _ in range(4)]
    banks = [
        MemoryBank(problems.size(20_011, 411), D, dtype=dtype).to(problems.DEVICE) for _ in range(2)
    ]
    for bank in banks:
        keys = problems.size(15_000, 300)
        bank.enqueue(problems.unit(keys, D), problems.ids(keys, high=50))
    ids = problems.ids(B, high=50)
    leaves = [side.requires_grad_() for side in sides]
    image, text, image_key, text_key = leaves
    options = {"hardness": 2.0, "in_batch_negatives": True, "backend": BACKEND}
    both = functional.symmetric_info_nce(*leaves, *banks, ids=ids, **options)
    first = functional.weighted_info_nce(image, text_key, banks[1], query_ids=ids, **options)
    second = functional.weighted_info_nce(text, image_key, banks[0], query_ids=ids, **options)
    torch.testing.assert_close(both, (first + second) / 2, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(both, leaves)
    want = torch.autograd.grad((first + second) / 2, leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)
