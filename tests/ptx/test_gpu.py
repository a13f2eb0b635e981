"""Host code that is only for a GPU, on tensors that say that they are on one."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import sede_kernels
from benchmarks import ahead, machine, measure, memory, records, run
from benchmarks.case import BOTH, Case
from benchmarks.operations.steps import write_part
from benchmarks.resume import is_lost
from sede_kernels import MemoryBank, functional
from sede_kernels.backends import registry
from sede_kernels.backends.triton import launch
from sede_kernels.cli import main as sede
from sede_kernels.info import collect
from tests.ptx.machine import cuda, driver, gpu

ARCHITECTURE = os.environ.get("SEDE_PTX_ARCH", "sm_80")


@pytest.fixture(scope="module", autouse=True)
def played():
    if cuda.nvcc() is None:
        pytest.skip("nvcc was not found")
    driver.install(ARCHITECTURE)
    cuda.install(ARCHITECTURE)
    with gpu.played(ARCHITECTURE):
        yield
    from sede_kernels.backends import cuda as backend
    from sede_kernels.backends import triton

    backend.emulate(None)
    triton.emulate(None)


def test_tensors_modules_and_generators_say_where_they_are():
    for tensor in (
        torch.zeros(2, device="cuda"),
        torch.zeros(2).to("cuda"),
        torch.randn(2, generator=torch.Generator("cuda"), device="cuda"),
        nn.Linear(2, 2).cuda().weight,
        MemoryBank(3, 2, device=torch.device("cuda")).rows,
    ):
        assert tensor.is_cuda and tensor.device == torch.device("cuda", 0)
        assert tensor.flatten()[0].item() == tensor.numpy(force=True).flat[0], "and lie in memory"


def test_every_gpu_backend_is_there_and_auto_takes_triton():
    found = sede_kernels.available_backends()
    assert found["triton"] is None and found["cuda"] is None
    assert launch.device_class(gpu.DEVICE) == (ARCHITECTURE, 4)
    query = torch.randn(4, 8)
    assert registry.serving("info_nce", "auto", query, query) == "triton"
    assert registry.serving("info_nce", "cuda", query, query) == "cuda"
    (found,) = collect()["gpus"]
    capability = ".".join(ARCHITECTURE.removeprefix("sm_"))
    assert found == {"name": "played GPU", "capability": capability, "memory_gb": 8.0}


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_step_on_a_gpu_gives_the_value_of_the_reference(backend):
    query, key = torch.randn(5, 16), torch.randn(5, 16)
    bank = MemoryBank(20, 16).cuda()
    bank.enqueue(torch.randn(7, 16), backend=backend)
    leaf = query.clone().requires_grad_()
    loss = functional.weighted_info_nce(leaf, key, bank, hardness=2.0, backend=backend)
    loss.backward()
    wide = query.double().requires_grad_()
    truth = functional.weighted_info_nce(
        wide, key.double(), bank, hardness=2.0, backend="reference"
    )
    truth.backward()
    assert torch.allclose(loss.double(), truth, rtol=1e-5)
    assert torch.allclose(leaf.grad.double(), wide.grad, rtol=1e-4, atol=1e-6)


def test_a_step_makes_the_host_wait_for_nothing():
    query, key = torch.randn(6, 16), torch.randn(6, 16)
    bank = MemoryBank(20, 16).cuda()
    leaf = query.clone().requires_grad_()

    def step():
        loss = functional.weighted_info_nce(
            leaf, key, bank, hardness=2.0, in_batch_negatives=True, backend="cuda"
        )
        loss.backward()
        bank.enqueue(key, backend="cuda")
        functional.hardest_negatives(query, bank, 2, backend="cuda")
        functional.attention_erase(query.softmax(1), backend="cuda")

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with pytest.raises(RuntimeError, match="synchronizing"):
            leaf.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode(0)


def test_events_time_and_the_allocator_is_asked():
    calls = []
    timing = measure.interleave({"a": calls.append}, gpu.DEVICE, 0.01)["a"]
    assert timing.median > 0 and timing.repeats >= 5 and len(calls) > timing.repeats
    peak = memory.device_peak(lambda turn: {}, gpu.DEVICE)
    assert peak.status == "ok" and peak.extra_mb > 0 and peak.source == "torch.cuda allocator"
    assert machine.facts(gpu.DEVICE)["device"] == "played GPU"
    assert not is_lost(gpu.DEVICE)
    with pytest.raises(RuntimeError, match="enable_timing"):
        gpu.Event().elapsed_time(gpu.Event())


def test_a_benchmark_runs_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "gpu.jsonl"
    words = ["--smoke", "--device", "cuda", "--no-figures", "--op", "enqueue", "--op", "erase_mean"]
    names = ("sede triton", "sede cuda", "sede torch", "eager")
    words += [word for name in names for word in ("--impl", name)]
    assert run.main([*words, "--patience", "300", "--out", str(out)]) == 0
    read, problems = records.read([out])
    assert not problems and {r["device"] for r in read} == {"played GPU"}
    assert {(r["implementation"], r["status"]) for r in read} == {(name, "ok") for name in names}
    assert all(r["memory_from"] == "torch.cuda allocator" for r in read)
    order = tmp_path / "order.json"
    assert ahead.main([str(out), "--order", str(order), "--device", ARCHITECTURE]) == 0
    assert {row["op"] for row in json.loads(order.read_text())} == {"enqueue", "erase"}
    assert run.main(["table", str(out)]) == 0
    assert "enqueue fwd int8" in capsys.readouterr().out


def test_a_model_trains_and_is_tested_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("SEDE_BACKEND", "cuda")
    data, out = tmp_path / "tiny_precomp", tmp_path / "run"
    data.mkdir()
    case = Case("train_step_vse", BOTH, "fp32", {"B": 8, "R": 3, "F": 6})
    for part in ("train", "dev", "test"):
        write_part(data, part, case, np.random.default_rng(0))
    words = ["train", "--data", str(data), "--out", str(out), "--model=vse", "--epochs=1"]
    words += ["--dim=16", "--word-dim=8", "--batch-size=8", "--bank=16", "--weighting=2"]
    launches = cuda.report()[0]
    assert sede([*words, "--device=cuda", "--workers=1"]) == 0
    assert json.loads((out / "config.json").read_text())["device"] == "cuda"
    assert json.loads((out / "test.json").read_text())["train_seconds"] > 0
    assert cuda.report()[0] > launches


def test_a_full_gpu_becomes_a_record(tmp_path, monkeypatch):
    from benchmarks.operations.ring import Enqueue

    def full(self, backend, case, sets):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(Enqueue, "_ours", full)
    out = tmp_path / "gpu.jsonl"
    words = ["--smoke", "--device", "cuda", "--no-figures", "--op", "enqueue"]
    assert run.main([*words, "--impl", "sede cuda", "--impl", "eager", "--out", str(out)]) == 0
    statuses = {(r["implementation"], r["status"]) for r in records.read([out])[0]}
    assert statuses == {("sede cuda", "out of memory"), ("eager", "ok")}
