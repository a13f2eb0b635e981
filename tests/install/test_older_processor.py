"""The module as built here, on processors without AVX-512 and without AVX2, under an emulator."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from sede_kernels.backends.cpu import _native

EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

#: Prints the instruction set, then the largest error of loss, gradient, similarity and erasing.
PROGRAM = """
import torch
from torch.nn.functional import normalize
from sede_kernels import attention_erase, cross_attention_similarity, weighted_info_nce
from sede_kernels.backends.cpu import _native
torch.set_num_threads(1)
torch.manual_seed(0)
query, key, bank = (normalize(torch.randn(n, 33), dim=1) for n in (5, 5, 301))
regions, words = torch.randn(3, 36, 16), torch.randn(4, 5, 16)
attention = torch.rand(7, 40).softmax(1)
def results(backend, dtype):
    q = query.to(dtype).requires_grad_()
    loss = weighted_info_nce(q, key.to(dtype), bank.to(dtype), hardness=2.0, backend=backend)
    similarity = cross_attention_similarity(
        regions.to(dtype), words.to(dtype), erase="mean", backend=backend)
    erased = attention_erase(attention.to(dtype), backend=backend)[0]
    return loss.detach(), torch.autograd.grad(loss, q)[0], similarity, erased
pairs = zip(results("cpu", torch.float32), results("reference", torch.float64))
print(_native.module().isa(), max(float((a - b).abs().max()) for a, b in pairs))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="it emulates x86 on x86")
@pytest.mark.skipif(EMULATOR is None, reason="qemu-user is not installed")
@pytest.mark.skipif(_native.unavailable_reason() is not None, reason="the native module is absent")
@pytest.mark.parametrize(("processor", "isa"), [("Haswell", "avx2"), ("Nehalem", "scalar")])
def test_runs_on_an_older_processor(processor: str, isa: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SEDE_")}
    done = subprocess.run(
        [str(EMULATOR), "-cpu", processor, sys.executable, "-c", PROGRAM],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    chosen, error = done.stdout.split()
    assert chosen == isa
    assert float(error) < 1e-5
