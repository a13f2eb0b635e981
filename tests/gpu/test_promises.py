"""Repeatability, graphs, streams, devices, 64-bit addresses and torch.compile on the GPU."""

import problems
import pytest
import torch
from problems import BACKEND

from sede_kernels import MemoryBank, functional


def _problem(dtype=torch.bfloat16, B=130, D=256):
    K = problems.size(20_011, 411)
    query, key, bank = (
        problems.unit(B, D, dtype),
        problems.unit(B, D, dtype),
        problems.unit(K, D, dtype),
    )
    options = {
        "hardness": 2.0,
        "query_ids": problems.ids(B, high=50),
        "bank_ids": problems.ids(K, low=-1, high=50),
        "in_batch_negatives": True,
    }
    return (query, key, bank), options


@pytest.mark.parametrize("D", [256, 1024], ids=["one-pass", "chunks"])
def test_a_hundred_repeats_are_bitwise_equal(D):
    tensors, options = _problem(D=D)
    first = problems.loss_and_gradients(*tensors, BACKEND, **options)
    top = functional.hardest_negatives(tensors[0], tensors[2], 20, backend=BACKEND)
    for _ in range(problems.size(100, 3)):
        again = problems.loss_and_gradients(*tensors, BACKEND, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        found = functional.hardest_negatives(tensors[0], tensors[2], 20, backend=BACKEND)
        assert all(torch.equal(a, b) for a, b in zip(top, found, strict=True))


@problems.needs_driver
@pytest.mark.parametrize("D", [256, 1024], ids=["one-pass", "chunks"])
def test_cuda_graph_of_a_training_step(D):
    (query, key, _), _ = _problem(D=D)
    bank = MemoryBank(5000, D, dtype=torch.bfloat16).cuda()
    static_query = query.clone().requires_grad_()

    def step():
        static_query.grad = None
        loss = functional.weighted_info_nce(static_query, key, bank, hardness=2.0, backend=BACKEND)
        loss.backward()
        bank.enqueue(key, backend=BACKEND)
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    state = {name: value.clone() for name, value in bank.state_dict().items()}
    with torch.no_grad():
        static_query.copy_(problems.unit(*query.shape, torch.bfloat16))
    graph.replay()
    replayed, gradient = captured.clone(), static_query.grad.clone()
    bank.load_state_dict(state)
    assert torch.equal(replayed, step())
    assert torch.equal(gradient, static_query.grad)


@problems.needs_driver
def test_two_streams_at_once():
    tensors, options = _problem()
    others, _ = _problem()
    expected = [problems.loss_and_gradients(*t, BACKEND, **options) for t in (tensors, others)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(10):
        found = []
        for stream, inputs in zip(streams, (tensors, others), strict=True):
            with torch.cuda.stream(stream):
                found.append(problems.loss_and_gradients(*inputs, BACKEND, **options))
        torch.cuda.synchronize()
        for got, want in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    tensors, options = _problem()
    expected = problems.loss_and_gradients(*tensors, BACKEND, **options)
    moved = [tensor.to("cuda:1") for tensor in tensors]
    there = {
        name: value.to("cuda:1") if torch.is_tensor(value) else value
        for name, value in options.items()
    }
    found = problems.loss_and_gradients(*moved, BACKEND, **there)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


@problems.needs_driver
@pytest.mark.parametrize("dim", [256, 1024])
def test_addresses_beyond_32_bits(dim):
    """Rows whose offset exceeds 2^31 elements must be the ones that were asked for."""
    size = (1 << 31) // dim + 5000
    if torch.cuda.mem_get_info()[0] < 2 * size * dim + (4 << 30):
        pytest.skip("too little free GPU memory")
    bank = torch.zeros(size, dim, dtype=torch.bfloat16, device=problems.DEVICE)
    bank[-4097:] = problems.unit(4097, dim, torch.bfloat16)
    ids = torch.full((size,), -1, device=problems.DEVICE)
    ids[-4097:] = 7
    query = problems.unit(5, dim, torch.bfloat16)
    small, small_ids = bank[-4097:].clone(), ids[-4097:].clone()
    for inputs, inputs_ids in ((bank, ids), (small, small_ids)):
        q = query.clone().requires_grad_()
        lse = functional.bank_lse(q, inputs, 10.0, bank_ids=inputs_ids, backend=BACKEND)
        (grad,) = torch.autograd.grad(lse.sum(), q)
        values, index = functional.hardest_negatives(
            query, inputs, 3, bank_ids=inputs_ids, backend=BACKEND
        )
        if inputs is bank:
            large = lse.detach(), grad, values, index - (size - 4097)
    torch.testing.assert_close(large[0], lse.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(large[1], grad, rtol=2e-2, atol=1e-3)
    assert torch.equal(large[2], values) and torch.equal(large[3], index)


@problems.needs_driver
def test_compiles_fullgraph_with_inductor():
    (query, key, bank), options = _problem()

    def step(q, k):
        return functional.weighted_info_nce(q, k, bank, backend=BACKEND, **options)

    compiled = torch.compile(step, fullgraph=True)
    outcome = []
    for function in (step, compiled):
        q = query.clone().requires_grad_()
        loss = function(q, key)
        outcome.append((loss.detach(), *torch.autograd.grad(loss, q)))
    for got, want in zip(*outcome, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-4)


@problems.needs_driver
def test_no_host_synchronisation():
    (query, key, _), _ = _problem()
    bank = MemoryBank(5000, 256, dtype=torch.bfloat16).cuda()
    q = query.clone().requires_grad_()

    def step():
        loss = functional.weighted_info_nce(
            q, key, bank, hardness=2.0, in_batch_negatives=True, backend=BACKEND
        )
        loss.backward()
        bank.enqueue(key, backend=BACKEND)
        functional.hardest_negatives(query, bank, 5, backend=BACKEND)
        functional.attention_erase(query.float().softmax(1), backend=BACKEND)

    step()
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@problems.of_triton
@problems.needs_driver
def test_autocast_and_auto_choice():
    (query, key, bank), _ = _problem(torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        under = functional.weighted_info_nce(query, key, bank)
    plain = functional.weighted_info_nce(query, key, bank, backend=BACKEND)
    assert torch.equal(under, plain)
