"""No copy overwrites a tile that a product may still read: the kernels that once let it, on sm_90.

Triton 3.9 gives a tile one buffer too few where it feeds a product and a sum, and where half of a
product with its left operand in registers stays in flight.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]
PROJECT = """
import torch
from torch.nn import functional as F

import sede_kernels
from sede_kernels.backends.triton.gram import GRAM_OPTIONS, GRAM_QUERIES
from sede_kernels.backends.triton.kernels.cross_attention import _gram_bwd_kernel
from sede_kernels.testing import relative_error

torch.manual_seed(0)
torch.set_float32_matmul_precision("high")
v, e = (F.normalize(torch.randn(1, 2, n, 200), dim=3) for n in (40, 36))
results = {}
for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
    words = e.to(dtype, copy=True).requires_grad_()
    found = sede_kernels.cross_attention_pairs(v.to(dtype), words, backend=backend)
    results[backend] = found.detach(), *torch.autograd.grad(found.sum(), words)
for got, want in zip(results["triton"], results["reference"], strict=True):
    assert relative_error(got, want) < 2**-9, relative_error(got, want)

queries, width = 5 * GRAM_QUERIES["tf32"] - 3, 40
a = torch.rand(queries, 2, width).bfloat16()
weight = torch.randn(2, queries)
got = torch.empty(2, width, width)
_gram_bwd_kernel[(2,)](
    a, weight, got, queries, 2, width // 8, PRECISION="tf32", BLOCK_R=64,
    BLOCK_N=GRAM_QUERIES["tf32"], **GRAM_OPTIONS,
)
want = torch.einsum("npi,pn,npj->pij", a.double(), weight.double(), a.double())
assert relative_error(got, want) < 2**-8, relative_error(got, want)
"""
MINIMAL = """
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def product(x, y, out, norm, D, APART: tl.constexpr):
    row, col = tl.arange(0, 64), tl.arange(0, 32)
    at = row[:, None] * D + col[None, :]
    s, square = tl.zeros((64, 64), tl.float32), tl.zeros((64,), tl.float32)
    for d in range(0, D, 32):
        a, b = tl.load(x + at + d), tl.load(y + at + d)
        s = tl.dot(a, tl.trans(b), s)
        if not APART:
            square += tl.sum(a * a, 1)
    if APART:
        for d in range(0, D, 32):
            a = tl.load(x + at + d)
            square += tl.sum(a * a, 1)
    tl.store(out + row[:, None] * 64 + row[None, :], s)
    tl.store(norm + row, square)


x, y = torch.randn(64, 256), torch.randn(64, 256)
out, norm = torch.empty(64, 64), torch.empty(64)
product[(1,)](x, y, out, norm, 256, APART=sys.argv[1] == "apart", num_warps=8, num_stages=3)
torch.testing.assert_close(norm, (x * x).sum(1))
torch.testing.assert_close(out, x @ y.T, rtol=0, atol=0.1)
"""


def run(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, "-m", "tests.ptx.machine", "--arch", "sm_90", str(path), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_kernels_of_pairs_and_of_the_gram_gradient(tmp_path):
    done = run(tmp_path, PROJECT)
    assert done.returncode == 0, done.stderr


def test_a_sum_in_a_loop_of_its_own(tmp_path):
    done = run(tmp_path, MINIMAL, "apart")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not triton.__version__.startswith("3.9."), reason="another Triton may differ")
def test_a_sum_beside_the_product_is_noticed(tmp_path):
    done = run(tmp_path, MINIMAL, "together")
    assert done.returncode == 1
    assert "FaultError: product on sm_90" in done.stderr and "[async-overwrite]" in done.stderr
