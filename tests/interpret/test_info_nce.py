"""The weighted InfoNCE around its passes, against fp64: options, odd sizes, extremes; launches."""

import oracle
import pytest
import torch

from benchmarks import host
from sede_kernels import MemoryBank, SEDELoss, functional
from sede_kernels.backends import triton as backend
from sede_kernels.backends.triton import _chunks
from sede_kernels.backends.triton import bank_lse as bank_module

B, K, D = 17, 40, 24
OPTIONS = {
    "plain": {},
    "attached": {"hardness": 3.0, "detach_weights": False, "margin": 0.2, "reduction": "sum"},
    "weighted": {"hardness": 3.0, "normalize_weights": False, "reduction": "none"},
    "debiased": {"hardness": 2.0, "tau_plus": 0.1, "in_batch_negatives": True},
    "positives": {
        "hardness": 2.0,
        "false_negatives": "positive",
        "in_batch_negatives": True,
        "positive_focus": 2.0,
    },
    "margin": {"margin": 0.1, "in_batch_negatives": True, "false_negatives": "keep"},
    "limit": {"hardness": 2.0, "in_batch_negatives": True, "limit": (-0.3, 0.4)},
    "focused rows": {"positive_focus": 0.5, "reduction": "none", "hardness": 1.0},
}


def outcome(name, options, dtype, learned, two, over=None):
    """Loss, gradients and statistics."""
    over = {} if over is None else over
    own = [oracle.matrix(B, D, seed, over.get("kept", torch.float32)) for seed in range(4)]
    banks = [oracle.matrix(K, D, seed, over.get("kept", torch.float32)) for seed in (7, 8)]
    query_ids, bank_ids = oracle.ids(B, 5, high=12), oracle.ids(K, 6, low=-1, high=12)
    if "empty" in over:
        bank_ids[:] = -1
    if "nan" in over:
        own[0][3] = torch.nan
    leaves = [tensor.to(dtype).requires_grad_() for tensor in own]
    options = {"temperature": over.get("temperature", 0.1), **options}
    if learned:
        wide = torch.promote_types(dtype, torch.float32)
        for argument in {"temperature", "hardness"} & set(options):
            options[argument] = torch.tensor(options[argument], dtype=wide, requires_grad=True)
    if "limit" in options:
        of_sides = torch.linspace(*options["limit"], 2 * B).reshape(2, B)
        options["limit"] = (of_sides if two else of_sides[0]).to(dtype)
    scalars = [value for value in options.values() if getattr(value, "requires_grad", False)]
    banks = [bank.to(dtype) for bank in banks]
    if two:
        loss, stats = functional.symmetric_info_nce(
            leaves[0], leaves[1], leaves[2], leaves[3], *banks, ids=query_ids, backend=name,
            return_stats=True, **options,
        )  # fmt: skip
    else:
        loss, *stats = functional.weighted_info_nce(
            leaves[0], leaves[1], banks[0], query_ids=query_ids, bank_ids=bank_ids, backend=name,
            return_stats=True, **options,
        )  # fmt: skip
        leaves = leaves[:2]
    weight = torch.linspace(0.5, 2.0, B, dtype=loss.dtype) if loss.ndim else 1.7
    grads = torch.autograd.grad((loss * weight).sum(), [*leaves, *scalars])
    found = [value.double() for one in stats for value in one]
    return [loss.detach(), *grads], found


@pytest.mark.parametrize(
    ("name", "learned", "two"),
    [
        ("plain", True, False),
        ("attached", True, True),
        ("weighted", True, True),
        ("debiased", True, True),
        ("debiased", False, False),
        ("positives", True, True),
        ("positives", False, False),
        ("margin", False, True),
        ("limit", True, True),
        ("limit", False, False),
        ("focused rows", False, True),
    ],
)
def test_against_fp64(name, learned, two) -> None:
    got, stats = outcome("triton", OPTIONS[name], torch.float32, learned, two)
    want, truth = outcome("reference", OPTIONS[name], torch.float64, learned, two)
    plain, _ = outcome("torch", OPTIONS[name], torch.float32, learned, two)
    for value, exact, eager in zip(got, want, plain, strict=True):
        oracle.assert_product_within_budget(value, exact, eager, torch.float32)
    for value, exact in zip(stats, truth, strict=True):
        oracle.assert_close("statistics", value, exact, 2e-6)


@pytest.mark.parametrize("name", ["weighted", "debiased"])
def test_parts_of_half_rows(name) -> None:
    over = {"kept": torch.bfloat16}
    got, stats = outcome("triton", OPTIONS[name], torch.bfloat16, False, True, over)
    want, truth = outcome("reference", OPTIONS[name], torch.float64, False, True, over)
    plain, _ = outcome("torch", OPTIONS[name], torch.bfloat16, False, True, over)
    for value, exact, eager in zip(got, want, plain, strict=True):
        oracle.assert_product_within_budget(value, exact, eager, value.dtype)
    for value, exact in zip(stats, truth, strict=True):
        oracle.assert_close("statistics", value, exact, 2e-6)


def test_nothing_counts() -> None:
    got, stats = outcome("triton", OPTIONS["attached"], torch.float32, True, False, {"empty": 1})
    assert all(not value.any() for value in got)
    assert (stats[-1] == -torch.inf).all()


def test_a_nan_row_stays_in_its_row() -> None:
    options = {"hardness": 2.0, "reduction": "none"}
    (loss, query, key), _ = outcome("triton", options, torch.float32, False, False, {"nan": 1})
    other = torch.arange(B) != 3
    for value in (loss, query, key):
        assert value[3].isnan().all()
        assert value[other].isfinite().all()


def test_a_low_temperature_and_a_loss_near_zero() -> None:
    """Losses of 1e-20 keep their digits, and none overflows."""
    query = oracle.matrix(5, 16, 1)
    bank = -query[:3] + 0.1 * oracle.matrix(3, 16, 2)
    options = {"temperature": 0.02, "reduction": "none"}
    got = functional.weighted_info_nce(query, query, bank, backend="triton", **options)
    want = functional.weighted_info_nce(
        query.double(), query.double(), bank.double(), backend="reference", **options
    )
    assert 0 < float(want.min()) < 1e-15
    assert float(((got - want) / want).abs().max()) < 3e-5  # of e^x, x = 100 in fp32


def test_small_losses_keep_their_digits() -> None:
    """log(1 + e^x) of logits that fp32 holds exactly: x = -30 and -20."""
    query, key = torch.tensor([[30.0, 0.0], [0.0, 20.0]]), torch.eye(2)
    rows = functional.weighted_info_nce(
        query, key, torch.zeros(1, 2), temperature=1.0, reduction="none", backend="triton"
    )
    torch.testing.assert_close(rows, torch.tensor([-30.0, -20.0]).exp(), rtol=1e-6, atol=0)


def test_rows_and_gradients_are_the_same_bits_each_time() -> None:
    first, again = (outcome("triton", OPTIONS["positives"], torch.float32, True, True)[0]
                    for _ in range(2))  # fmt: skip
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def _launches(monkeypatch, build):
    """Of one forward and backward on half rows, as they are multiplied on a GPU."""
    monkeypatch.setenv("SEDE_BACKEND", "triton")
    half = host.Leaves()
    for name in ("image", "text", "image_key", "text_key", "bank"):
        tensor = getattr(half, name)
        setattr(half, name, tensor.detach().bfloat16().requires_grad_(tensor.requires_grad))
    return host.launches_of(build(half), half)


def _weighted(leaves):
    bank = MemoryBank(host.K, host.D, dtype=torch.bfloat16)
    bank.enqueue(leaves.bank, torch.arange(host.K) + 100)
    return lambda: functional.weighted_info_nce(
        leaves.image, leaves.text_key, bank, hardness=5.0, query_ids=leaves.ids
    )


def _sede(in_batch):
    def build(leaves):
        criterion = SEDELoss(
            host.K, host.D, hardness=5.0, in_batch_negatives=in_batch, dtype=torch.bfloat16
        )
        criterion.enqueue(leaves.bank, leaves.bank.flip(0), ids=torch.arange(host.K) + 100)
        return lambda: criterion(
            leaves.image, leaves.text, leaves.image_key, leaves.text_key, ids=leaves.ids
        )

    return build


@pytest.mark.skipif(backend.emulated() is not None, reason="the counter is the interpreter's")
@pytest.mark.parametrize(
    ("build", "most"),
    [(_weighted, 3), (_sede(False), 4), (_sede(True), 5)],
    ids=["weighted_info_nce", "sede_loss_of_banks", "sede_loss"],
)
def test_launches(monkeypatch, build, most) -> None:
    forward, backward = _launches(monkeypatch, build)
    assert len(forward) <= most, forward
    assert len(backward) <= most, backward
    assert forward.count("triton::_info_nce_finish_kernel") == 1
    assert backward.count("triton::_info_nce_scale_kernel") == 1


@pytest.mark.skipif(backend.emulated() is not None, reason="the counter is the interpreter's")
@pytest.mark.parametrize(("chunks", "forward"), [(1, 7), (4, 16)], ids=["one_chunk", "four_chunks"])
def test_launches_in_chunks(monkeypatch, chunks, forward) -> None:
    """fp32 with a gradient, a bank with ids: two fills, three launches a chunk, two to end."""
    monkeypatch.setenv("SEDE_BACKEND", "triton")
    if chunks > 1:
        monkeypatch.setattr(_chunks, "chunk_size", lambda *_: 32)
    bank = MemoryBank(32 * chunks, 16)
    bank.enqueue(oracle.matrix(32 * chunks, 16, 3), torch.arange(32 * chunks) + 100)
    leaves = host.Leaves()
    found = host.launches_of(
        lambda: functional.weighted_info_nce(
            leaves.image, leaves.text_key, bank, hardness=5.0, query_ids=leaves.ids
        ),
        leaves,
    )
    assert [len(names) for names in found] == [forward, 2], found


def test_a_bounded_temperature_that_learns_has_the_fixed_maximum(monkeypatch) -> None:
    seen = []
    original = bank_module._launch

    def launched(*arguments, static, **options):
        seen.append(static)
        return original(*arguments, static=static, **options)

    monkeypatch.setattr(bank_module, "_launch", launched)
    options = {"hardness": 3.0, "unit_length": True, "max_inverse_temperature": 30.0}
    rows = [oracle.matrix(B, D, seed, torch.bfloat16) for seed in range(2)]
    bank = oracle.matrix(K, D, 7, torch.bfloat16)
    found = []
    for name, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
        query, key = (row.to(dtype).requires_grad_() for row in rows)
        tau = torch.tensor(0.1, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
        loss = functional.weighted_info_nce(
            query, key, bank.to(dtype), temperature=tau, backend=name, **options
        )
        found.append((loss.detach(), *torch.autograd.grad(loss, (query, key, tau))))
    assert seen == [True]
    for value, exact in zip(*found, strict=True):
        oracle.assert_close("bounded", value, exact, oracle.FLOORS[torch.bfloat16])
