"""The promises of the package, one test each, by name."""

import gc
import subprocess
import sys
import textwrap

import pytest
import torch

from sede_kernels import (
    BackendUnavailableError,
    MemoryBank,
    attention_erase,
    cross_attention_pairs,
    cross_attention_similarity,
    hardest_negatives,
    weighted_info_nce,
)
from sede_kernels.backends import registry
from tests.conftest import unit


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


def everything(backend: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    query = inputs["query"].clone().requires_grad_()
    key = inputs["key"].clone().requires_grad_()
    regions = inputs["regions"].clone().requires_grad_()
    loss = weighted_info_nce(
        query, key, inputs["bank"], hardness=5.0, query_ids=inputs["ids"],
        bank_ids=inputs["bank_ids"], in_batch_negatives=True, backend=backend,
    )  # fmt: skip
    similarity = cross_attention_similarity(regions, inputs["words"], backend=backend)
    pairs = cross_attention_pairs(regions[:, None], inputs["words"][:5, None], backend=backend)
    values, indices = hardest_negatives(query, inputs["bank"], 3, backend=backend)
    erased, mask = attention_erase(inputs["attention"], backend=backend)
    total = loss + similarity.sum() + values.sum() + pairs.sum()
    grads = torch.autograd.grad(total, [query, key, regions])
    return [loss, similarity, pairs, values, indices, erased, mask, *grads]


def fresh_inputs() -> dict[str, torch.Tensor]:
    return {
        "query": f32(33, 48), "key": f32(33, 48), "bank": f32(2049, 48),
        "ids": torch.randint(0, 50, (33,)), "bank_ids": torch.randint(-1, 50, (2049,)),
        "regions": f32(5, 7, 48), "words": f32(6, 9, 48),
        "attention": torch.rand(40, 36).softmax(-1),
    }  # fmt: skip


def test_promise_1_inputs_untouched(backend) -> None:
    inputs = fresh_inputs()
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    everything(backend, inputs)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_promise_2_bitwise_repeatable(backend) -> None:
    inputs = fresh_inputs()
    first = everything(backend, inputs)
    for _ in range(5):
        for a, b in zip(first, everything(backend, inputs), strict=True):
            assert torch.equal(a, b)


def test_promise_4_no_host_synchronisation() -> None:
    """Tensors on the meta device have no values: reading one to decide anything would raise."""
    query = torch.empty(4, 8, device="meta", requires_grad=True)
    bank = MemoryBank(16, 8, device="meta")
    ids = torch.empty(4, dtype=torch.int64, device="meta")
    tau = torch.empty((), device="meta", requires_grad=True)
    loss = weighted_info_nce(
        query, query, bank, temperature=tau, hardness=5.0, query_ids=ids,
        in_batch_negatives=True, false_negatives="positive", tau_plus=0.1, margin=0.1,
    )  # fmt: skip
    loss.backward()
    assert query.grad is not None and tau.grad is not None
    bank.enqueue(query.detach(), ids)
    values, _ = hardest_negatives(query, bank, 2)
    out, _ = attention_erase(torch.empty(3, 9, device="meta"), rule="quantile", threshold=0.5)
    sets = torch.empty(2, 3, 8, device="meta")
    similarity = cross_attention_similarity(sets, sets, word_lengths=ids[:2])
    pairs = cross_attention_pairs(sets[:, None], sets[:, None])
    for result in (loss, values, out, similarity, pairs):
        assert result.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.item()


_MEMORY = """
    import resource, sys, torch
    from sede_kernels import weighted_info_nce
    torch.set_num_threads(2)
    rows, size, dim = 512, int(sys.argv[1]), 16
    query = torch.nn.functional.normalize(torch.randn(rows, dim), dim=1).requires_grad_()
    bank = torch.nn.functional.normalize(torch.randn(size, dim), dim=1)
    weighted_info_nce(query, query.detach(), bank[:4096], backend=sys.argv[2]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weighted_info_nce(query, query.detach(), bank, hardness=5.0, backend=sys.argv[2]).backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_promise_5_memory_independent_of_b_times_k(backend) -> None:
    size = 262144  # B x K in fp32 is 512 MiB
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEMORY), str(size), backend],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    extra_kib = int(done.stdout)
    assert extra_kib < 48 * 1024, f"{extra_kib} KiB"


def test_promise_6_explicit_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    query = f32(2, 4)
    for name in ("triton", "cuda", "cpu"):
        monkeypatch.setattr(registry, "unavailable_reason", lambda _: "switched off for this test")
        with pytest.raises(BackendUnavailableError, match="switched off for this test"):
            weighted_info_nce(query, query, f32(5, 4), backend=name)


def test_loss_leaves_no_graph_behind() -> None:
    query = f32(8, 16).requires_grad_()
    weighted_info_nce(query, f32(8, 16), f32(64, 16), hardness=1.0).backward()
    gc.collect()
    leftovers = [
        o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == (1, 8, 16)
    ]
    assert not [o for o in leftovers if o.untyped_storage().nbytes() >= 8 * 16 * 4]
