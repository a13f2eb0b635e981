"""The public functions with backend="triton" on CPU tensors; choice, tuning, host waits."""

import json
from dataclasses import astuple, replace

import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sede_kernels import BackendUnavailableError, MemoryBank, functional
from sede_kernels.backends import registry
from sede_kernels.backends.triton import _problem as problem_module
from sede_kernels.backends.triton import bank_lse as bank_module
from sede_kernels.backends.triton import batch_lse as batch_module
from sede_kernels.backends.triton import emulated, launch, tuning
from sede_kernels.backends.triton import enqueue as enqueue_module
from sede_kernels.backends.triton import erase as erase_module
from sede_kernels.backends.triton import hardest as hardest_module
from sede_kernels.fragment_types import Erase
from sede_kernels.ops.bank_lse import bank_lse
from sede_kernels.ops.batch_lse import batch_lse
from sede_kernels.types import Bank, Match, RingState, Want

OPTIONS = [
    {"hardness": 3.0, "detach_weights": False, "margin": 0.3},
    {"hardness": 2.0, "false_negatives": "positive", "tau_plus": 0.1},
    {"false_negatives": "keep", "positive_focus": 1.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["attached", "positives", "focus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_info_nce(options, dtype):
    query, key = oracle.matrix(5, 16, 21, dtype), oracle.matrix(5, 16, 22, dtype)
    bank = oracle.matrix(40, 16, 23, dtype)
    ids = {"query_ids": oracle.ids(5, 24), "bank_ids": oracle.ids(40, 25, low=-1)}
    outcome = {}
    for backend, to in (("triton", dtype), ("reference", torch.float64)):
        q, k = query.to(to).requires_grad_(), key.to(to).requires_grad_()
        tau = torch.tensor(0.1, dtype=torch.promote_types(to, torch.float32), requires_grad=True)
        loss = functional.weighted_info_nce(
            q, k, bank.to(to), temperature=tau, in_batch_negatives=True, backend=backend,
            **ids, **options,
        )  # fmt: skip
        outcome[backend] = loss.detach(), *torch.autograd.grad(loss, (q, k, tau))
    floor = 5e-6 if dtype == torch.float32 else oracle.FLOORS[dtype]
    pairs = zip(outcome["triton"], outcome["reference"], strict=True)
    for name, (got, want) in zip(("loss", "dq", "dk", "dtau"), pairs, strict=True):
        oracle.assert_close(name, got, want, floor)


def test_statistics_of_a_memory_bank(monkeypatch):
    monkeypatch.setenv("SEDE_BACKEND", "triton")
    bank = MemoryBank(12, 16)
    for step in range(4):
        bank.enqueue(oracle.matrix(5, 16, step) * 3.0, oracle.ids(5, step))
    query = oracle.matrix(5, 16, 9)
    loss, stats = functional.weighted_info_nce(query, query, bank, return_stats=True)
    plain, expected = functional.weighted_info_nce(
        query, query, bank, return_stats=True, backend="torch"
    )
    oracle.assert_close("loss", loss, plain.double(), 2e-6)
    for name in ("hardest", "log_negatives", "negatives"):
        oracle.assert_close(name, getattr(stats, name), getattr(expected, name).double(), 2e-6)
    assert torch.equal(stats.hardest_index, expected.hardest_index)


def test_bank_lse_of_three_exponents_with_gradients():
    query, bank = oracle.matrix(3, 16, 31), oracle.matrix(40, 16, 32)
    outcome = []
    for backend, to in (("triton", torch.float32), ("reference", torch.float64)):
        q = query.to(to).requires_grad_()
        scales = torch.tensor([14.3, 0.0, 5.0], dtype=to, requires_grad=True)
        lse = functional.bank_lse(q, bank.to(to), scales, backend=backend)
        outcome.append((lse.detach(), *torch.autograd.grad(lse.sum(), (q, scales))))
    for name, got, want in zip(("lse", "dq", "dscales"), *outcome, strict=True):
        oracle.assert_close(name, got, want, 5e-6)


def test_compiles_without_a_graph_break():
    query, bank = oracle.matrix(3, 16, 41), oracle.matrix(40, 16, 42)

    def step(q):
        return functional.weighted_info_nce(q, query, bank, hardness=2.0, backend="triton")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    outcome = []
    for function in (step, compiled):
        q = query.clone().requires_grad_()
        loss = function(q)
        outcome.append((loss.detach(), *torch.autograd.grad(loss, q)))
    for got, want in zip(*outcome, strict=True):
        assert torch.equal(got, want)


def test_shapes_and_dtypes_are_those_of_the_fake_op():
    query, bank = (
        oracle.matrix(3, 16, 51, torch.bfloat16),
        oracle.matrix(40, 16, 52, torch.bfloat16),
    )
    scales = torch.tensor([14.3, 2.0])
    want = Want((0,), moments=True, hardest=True)
    arguments = bank_lse.flat(query, Bank(bank), scales, scales, Match(), want, None, "triton")
    torch.library.opcheck(
        torch.ops.sede.bank_lse.default, arguments, test_utils=["test_schema", "test_faketensor"]
    )


def test_auto_takes_triton_for_cuda_tensors_only():
    with FakeTensorMode():
        query, bank = torch.empty(3, 16, device="cuda"), torch.empty(9, 16, device="cuda")
        for op in ("bank_lse", "batch_lse", "batch_lse_backward", "hardest", "enqueue"):
            function = registry.resolve(op, "auto", query, bank)
            assert function.__module__.startswith("sede_kernels.backends.triton."), op
        for op in ("erase", "erase_backward"):
            function = registry.resolve(op, "auto", query)
            assert function.__module__.startswith("sede_kernels.backends.triton."), op
        double = registry.resolve("bank_lse", "auto", query.double(), bank)
        assert double.__module__.startswith("sede_kernels.backends.torch.")
    on_cpu = registry.resolve("bank_lse", "auto", oracle.matrix(3, 16, 1), oracle.matrix(9, 16, 2))
    assert ".triton." not in on_cpu.__module__


def test_an_explicit_request_that_cannot_be_met_raises():
    query = oracle.matrix(3, 16, 61).double()
    with pytest.raises(BackendUnavailableError, match="float64"):
        functional.bank_lse(query, query, 1.0, backend="triton")
    with pytest.raises(BackendUnavailableError, match="4096"):
        functional.attention_erase(torch.rand(1, 5_000), backend="triton")


class _NoWaits(TorchDispatchMode):
    """Refuses every operation for which the host would wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["one-pass", "chunks"])
def test_the_host_never_waits(dtype):
    query, bank = oracle.matrix(3, 16, 71, dtype), oracle.matrix(40, 16, 72, dtype)
    ids, bank_ids, scales = oracle.ids(3, 73), oracle.ids(40, 74, low=-1), torch.tensor([5.0])
    limit = torch.ones(3)
    state = [torch.zeros(7, 16, dtype=torch.int8), torch.ones(7), torch.full((7,), -1)]
    with pytest.raises(AssertionError, match="waits"), _NoWaits():
        limit.sum().item()
    with _NoWaits():
        full, match = Bank(bank, ids=bank_ids), Match(ids, limit)
        want = Want((0,), moments=True, hardest=True)
        bank_module.bank_lse(query, full, scales, match, want)
        batch = batch_module.batch_lse(query, query, scales, match, Want(), keep=True)
        batch_module.batch_lse_backward(
            torch.ones(1, 3), batch.lse, batch.kept, query, query, scales, scales, match
        )
        hardest_module.hardest(query, full, ids, k=2)
        counters = [torch.tensor(5) for _ in range(3)]
        enqueue_module.enqueue(RingState(*state, *counters), query, ids, normalize=True)
        _, mask = erase_module.erase(bank.float(), None, Erase("mean"))
        erase_module.erase_backward(bank.float(), bank.float(), mask, renormalize=True)


@pytest.fixture
def _fresh_tuning(monkeypatch):
    """Nothing is tuned yet, and every row has two entries, as on the interpreter."""
    usual = launch.candidates

    def two(kernel, key, architecture):
        first = usual(kernel, key, architecture)[0]
        return [first, replace(first, stages=2 if first.stages == 1 else 1)]

    if emulated():
        monkeypatch.setattr(launch, "candidates", two)
    tuning.forget()
    yield
    tuning.forget()


@pytest.mark.usefixtures("_fresh_tuning")
def test_tuning_is_stored_and_used(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    query, bank = (
        oracle.matrix(3, 16, 81, torch.bfloat16),
        oracle.matrix(40, 16, 82, torch.bfloat16),
    )
    default = functional.bank_lse(query, bank, 5.0, backend="triton")
    monkeypatch.setenv("SEDE_TUNING_FILE", str(path))
    functional.bank_lse(query, bank, 5.0, backend="triton")
    assert not path.exists()  # without SEDE_AUTOTUNE=1 nothing is timed
    monkeypatch.setenv("SEDE_AUTOTUNE", "1")
    tuned = functional.bank_lse(query, bank, 5.0, backend="triton")
    torch.testing.assert_close(tuned, default)
    stored = json.loads(path.read_text())
    architecture, _ = launch.device_class(query.device)
    assert list(stored) == [f"bank_lse step/half {architecture} 4x64"]
    # A stored result is taken, another entry than the default here; an unknown one is not.
    entries = launch.candidates("bank_lse", "step/half", architecture)
    for entry, expected in ((astuple(entries[1]), entries[1]), ((48, 32, 4, 1), entries[0])):
        path.write_text(json.dumps(dict.fromkeys(stored, entry)))
        tuning.forget()
        monkeypatch.delenv("SEDE_AUTOTUNE", raising=False)
        chosen = tuning.choose(
            "bank_lse", "step/half", query.device, architecture, (3, 40), lambda _: None
        )
        assert chosen == expected
    path.write_text("[]")
    tuning.forget()
    with pytest.raises(ValueError, match="SEDE_TUNING_FILE"):
        functional.bank_lse(query, bank, 5.0, backend="triton")


@pytest.mark.usefixtures("_fresh_tuning")
def test_every_pass_over_bank_and_batch_can_be_tuned(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    query, bank = oracle.matrix(3, 16, 83).requires_grad_(), oracle.matrix(40, 16, 84)

    def results():
        loss = functional.weighted_info_nce(
            query, query.detach(), bank, hardness=3.0, in_batch_negatives=True, backend="triton"
        )
        values, indices = functional.hardest_negatives(query, bank, 2, backend="triton")
        return loss, *torch.autograd.grad(loss, query), values, indices

    default = results()
    monkeypatch.setenv("SEDE_TUNING_FILE", str(path))
    monkeypatch.setenv("SEDE_AUTOTUNE", "1")
    for got, want in zip(results(), default, strict=True):
        torch.testing.assert_close(got, want)
    assert {name.split()[0] for name in json.loads(path.read_text())} == {
        "bank_lse", "batch_lse_backward", "chunk_rows", "chunk_weights", "hardest",
    }  # fmt: skip


def _rows_of(dtype=torch.float32):
    return [oracle.matrix(rows, 16, 90 + seed, dtype) for seed, rows in enumerate((5, 5, 5, 5, 9))]


def _loss(**options):
    query, key, *_, bank = _rows_of()
    return functional.weighted_info_nce(query.requires_grad_(), key, bank, **options)


def _two_sides(dtype):
    image, text, image_key, text_key, bank = _rows_of(dtype)
    rows = image.requires_grad_(), text.requires_grad_(), image_key, text_key
    return functional.symmetric_info_nce(*rows, bank, bank.flip(0), in_batch_negatives=True)


def _erased():
    weights = oracle.matrix(5, 16, 95).softmax(1).requires_grad_()
    return functional.attention_erase(weights)[0].sum()


def _fragments(call, *sets):
    regions, words = (oracle.matrix(6, 4, seed).view(*sets, 3, 4) for seed in (96, 97))
    return call(regions.requires_grad_(), words)


def _in_batch():
    query, key = (row.requires_grad_() for row in _rows_of()[:2])
    out = batch_lse(
        query, key, torch.ones(1), torch.ones(1), Match(), Want(), False, None, None, "auto"
    )
    return out.lse.sum()


@pytest.mark.parametrize(
    ("call", "products"),
    [
        (lambda: functional.bank_lse(*_rows_of()[3:], 5.0), [1]),
        (lambda: functional.hardest_negatives(*_rows_of()[3:], 2)[0], [1]),
        (lambda: _loss(hardness=3.0, temperature=torch.tensor(0.1, requires_grad=True)), [1, 0]),
        (lambda: _loss(margin=0.1, positive_focus=1.0), [1, 0]),
        (lambda: _loss(hardness=3.0, in_batch_negatives=True), [2, 1]),
        (lambda: _two_sides(torch.bfloat16), [2, 1]),
        (lambda: _two_sides(torch.float32), [2, 1]),
        (_in_batch, [1, 1]),
        (lambda: functional.score_info_nce(oracle.matrix(5, 9, 94).requires_grad_()), [0, 0]),
        (_erased, [0, 0]),
        (lambda: _fragments(functional.cross_attention_pairs, 1, 2), [0, 0]),
        (lambda: _fragments(functional.cross_attention_similarity, 2), [0, 0]),
    ],
    ids=["bank_lse", "hardest", "learned", "margin", "in-batch", "two sides", "two banks in chunks",
         "batch_lse", "scores", "erase", "pairs", "all pairs"],
)  # fmt: skip
def test_a_call_asks_once_for_the_device_and_once_for_each_product(monkeypatch, call, products):
    monkeypatch.setenv("SEDE_BACKEND", "triton")
    asked = []

    def counting(module, name):
        original = getattr(module, name)

        def count(*arguments):
            asked.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, count)

    counting(launch, "device_class")
    counting(problem_module, "operand_dtype")
    out = call()
    found = [sorted(asked)]
    if out.requires_grad:
        asked.clear()
        out.sum().backward()
        found.append(sorted(asked))
    assert found == [["device_class"] + count * ["operand_dtype"] for count in products]
