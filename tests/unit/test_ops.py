"""torch.library contracts: opcheck, full-graph compile, autocast, double backward, registry."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck

import sede_kernels
from sede_kernels import (
    BackendUnavailableError,
    MemoryBank,
    attention_erase,
    bank_lse,
    cross_attention_pairs,
    cross_attention_similarity,
    hardest_negatives,
    ops,
    weighted_info_nce,
)
from sede_kernels.backends import registry
from sede_kernels.fragment_types import Attend, Erase, Fragments
from sede_kernels.types import Bank, Match, RingState, Want
from tests.conftest import CPU_BACKENDS, unit


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


def check(op, *arguments) -> None:
    opcheck(getattr(torch.ops.sede, op.name).default, op.flat(*arguments))


def test_opcheck(backend) -> None:
    query, bank, key = f32(5, 7).requires_grad_(), f32(33, 7), f32(5, 7).requires_grad_()
    scales = torch.tensor([10.0, 5.0], requires_grad=True)
    fixed, ids = scales.detach().clone(), torch.arange(5)
    full = Bank(bank, ids=torch.arange(33))
    other = Bank(f32(33, 7), ids=torch.arange(33))
    queries, limits = f32(2, 5, 7).requires_grad_(), torch.full((2, 5), 0.5)
    want = Want((0, 1), moments=True, hardest=True)
    check(ops.bank_lse.bank_lse, query, full, scales, fixed, Match(ids), want, None, backend)
    check(
        ops.bank_lse_pair.bank_lse_pair,
        queries, full, other, scales, fixed, Match(ids, limits), want, None, backend,
    )  # fmt: skip
    check(
        ops.batch_lse.batch_lse,
        query, key, scales, fixed, Match(ids), want._replace(accumulate=()), False, None, None,
        backend,
    )  # fmt: skip
    check(ops.hardest.hardest, query, Bank(bank), None, 3, backend)
    attention = torch.rand(4, 9).softmax(-1).requires_grad_()
    check(ops.erase.erase, attention, None, Erase("mean"), backend)
    how = Attend("t2i", 9.0, "lse", 6.0, Erase("mean"))
    sides = [Fragments(f32(3, 4, 6).requires_grad_(), f32(2, 5, 6).requires_grad_(), None,
                       torch.tensor([3, 5]))]  # fmt: skip
    # Sets of one size, so that all that is kept is written.
    sides.append(Fragments(f32(16, 4, 6).requires_grad_(), f32(16, 5, 6).requires_grad_()))
    check(ops.cross_attention.cross_attention, sides[0], how, False, backend)
    check(ops.cross_attention.cross_attention, sides[1], how._replace(erase=None), True, backend)
    pairs = Fragments(f32(3, 1, 4, 6).requires_grad_(), f32(3, 2, 5, 6).requires_grad_())
    check(ops.cross_attention_pairs.cross_attention_pairs, pairs, how, backend)
    for dtype in (torch.float32, torch.int8):
        store = MemoryBank(8, 7, dtype=dtype)
        ring = RingState(
            store.rows, store.row_scale, store.ids, store.ptr, store.count, store.rejected
        )
        check(ops.enqueue.enqueue, ring, f32(3, 7), None, True, backend)


def test_compile_fullgraph_of_a_whole_step(backend) -> None:
    bank = MemoryBank(64, 7)
    bank.enqueue(f32(40, 7), torch.arange(40))
    tau = torch.tensor(0.1, requires_grad=True)
    query, key = f32(5, 7).requires_grad_(), f32(5, 7).requires_grad_()
    regions, words = f32(3, 4, 6).requires_grad_(), f32(2, 5, 6)

    def step(query, key, tau, regions):
        loss = weighted_info_nce(
            query, key, bank, temperature=tau, hardness=5.0, query_ids=torch.arange(5),
            margin=0.3, in_batch_negatives=True, backend=backend,
        )  # fmt: skip
        values, _ = hardest_negatives(query, bank, 2, backend=backend)
        erased, _ = attention_erase(regions.softmax(-1), backend=backend)
        similarity = cross_attention_similarity(regions, words, erase="prob", backend=backend)
        pairs = cross_attention_pairs(regions[:2, None], words[:, None], backend=backend)
        return loss + values.sum() + erased.square().sum() + similarity.sum() + pairs.sum()

    inputs = [query, key, tau, regions]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = compiled(*inputs), step(*inputs)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(a, b)

    def store(keys):
        bank.enqueue(keys, backend=backend)
        return bank.ids.clone()

    before = len(bank)
    torch.compile(store, fullgraph=True, backend="aot_eager")(f32(3, 7))
    assert len(bank) == before + 3


@pytest.mark.parametrize("backend", ["reference", *CPU_BACKENDS])
def test_autocast_changes_no_bit(backend) -> None:
    query, key, bank = f32(6, 16).requires_grad_(), f32(6, 16), f32(90, 16)
    regions, words = f32(3, 4, 6).requires_grad_(), f32(2, 5, 6)
    chosen = regions[:2, None], words[:, None]
    how = {"backend": backend}

    def forward() -> list[torch.Tensor]:
        loss, stats = weighted_info_nce(
            query, key, bank, hardness=4.0, in_batch_negatives=True, return_stats=True, **how
        )
        return [
            loss,
            hardest_negatives(query, bank, **how)[0],
            bank_lse(query, bank, 2.0, **how),
            cross_attention_similarity(regions, words, **how),
            cross_attention_similarity(regions, words, attention="max", aggregate="sum", **how),
            cross_attention_pairs(*chosen, **how),
            cross_attention_pairs(*chosen, attention="max", aggregate="sum", **how),
            stats.hardest,
        ]

    def gradients(found: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad([one.sum() for one in found[:-1]], [query, regions])

    want = forward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward()
    for a, b in zip([*got, *gradients(got)], [*want, *gradients(want)], strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_retain_graph_and_row_losses_scale_the_saved_gradient(backend) -> None:
    query = f32(4, 6).requires_grad_()
    rows = weighted_info_nce(query, f32(4, 6), f32(20, 6), reduction="none", backend=backend)
    whole = torch.autograd.grad(rows.sum(), query, retain_graph=True)[0]
    weights = torch.tensor([1.0, 0.0, -2.0, 0.5])
    for _ in range(2):
        (got,) = torch.autograd.grad(rows, query, weights, retain_graph=True)
        torch.testing.assert_close(got, whole * weights[:, None])


def test_backends_are_named_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sede_kernels.available_backends()
    assert set(found) == {"reference", "torch", "cpu", "triton", "cuda"}
    assert found["torch"] is None and found["reference"] is None
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in found.values())
    query, bank = f32(2, 4), f32(5, 4)
    with pytest.raises(BackendUnavailableError, match="'cuda' was asked for but"):
        weighted_info_nce(query, query, bank, backend="cuda")
    monkeypatch.setenv("SEDE_BACKEND", "cuda")
    with pytest.raises(BackendUnavailableError, match="torch: available"):
        weighted_info_nce(query, query, bank)
    weighted_info_nce(query, query, bank, backend="torch")
    monkeypatch.setenv("SEDE_BACKEND", "gpu")
    with pytest.raises(ValueError, match="SEDE_BACKEND must be one of auto"):
        weighted_info_nce(query, query, bank)


def test_auto_takes_the_next_backend_when_the_first_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query = f32(3, 4)
    honest = registry._refusal

    def refuse_cpu(name, *rest):
        return "refused for this test" if name == "cpu" else honest(name, *rest)

    monkeypatch.setattr(registry, "_refusal", refuse_cpu)
    chosen = registry.resolve("bank_lse", "auto", query, query)
    assert chosen.__module__.endswith("backends.torch.bank_lse")
    with pytest.raises(BackendUnavailableError, match="refused for this test"):
        registry.resolve("bank_lse", "cpu", query, query)


@pytest.mark.parametrize(("able", "warns"), [("cuda", False), ("torch", True)])
def test_auto_warns_only_where_no_kernels_serve(monkeypatch, able, warns):
    from sede_kernels.backends import registry

    monkeypatch.setattr(registry, "_warned_of", set())
    monkeypatch.setattr(registry, "_refusal", lambda name, *_: None if name == able else "missing")
    monkeypatch.setattr(registry, "_function", lambda name, op: name)
    monkeypatch.setattr(registry, "unavailable_reason", lambda name: "missing")
    monkeypatch.delenv("SEDE_BACKEND", raising=False)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert registry.resolve("bank_lse", "auto", on_gpu) == able
    assert len(caught) == int(warns)
