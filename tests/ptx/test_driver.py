"""The driver and the runner: Triton's own host code on CPU tensors, and what they report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import sede_kernels


@triton.jit
def scale(x, y, factor, n, stride, BLOCK: tl.constexpr, LIMIT: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < LIMIT if LIMIT else at < n
    tl.store(y + at, tl.load(x + at * stride, mask=inside, other=0.0) * factor, mask=inside)


@triton.jit
def copy(source, target, ROWS: tl.constexpr, COLS: tl.constexpr):
    i, j = tl.program_id(0) * ROWS, tl.program_id(1) * COLS
    target.store([i, j], source.load([i, j]))


def described(t):
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [16, 32])


x = torch.arange(1000.0)
y = torch.empty(1000)
scale[(8,)](x, y, 0.5, 1000, 1, BLOCK=128, LIMIT=0)
assert torch.equal(y, x / 2)
z = torch.empty(500)
scale[lambda meta: (triton.cdiv(500, meta["BLOCK"]),)](x, z, 3, 500, 2, BLOCK=128, LIMIT=0)
assert torch.equal(z, x[::2] * 3)
a, b = torch.randn(50, 40), torch.zeros(50, 40)
copy[(4, 2)](described(a), described(b), 16, 32)
assert torch.equal(a, b)
from sede_kernels.backends.triton import launch
print("class", launch.device_class(x.device), sede_kernels.__file__, sys.argv[1:])
if "stray" in sys.argv:  # what is written beyond lies in the input
    whole = torch.arange(1500.0)
    scale[(8,)](whole[500:], whole[:500], 0.5, 1000, 1, BLOCK=128, LIMIT=501)
"""


def run(
    tmp_path: Path, *options: str, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "-m", "tests.ptx.machine", *options, str(script), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
def test_a_script_runs_on_every_architecture(tmp_path, architecture):
    done = run(tmp_path, "--arch", architecture, "--cores", "7", arguments=("first", "--second"))
    assert done.returncode == 0, done.stderr
    assert f"class ('{architecture}', 7)" in done.stdout
    assert "['first', '--second']" in done.stdout
    assert "3 launches of" in done.stderr and "warp instructions in" in done.stderr


def test_a_fault_ends_the_script_or_is_listed_at_the_end(tmp_path):
    done = run(tmp_path, "--arch", "sm_80", arguments=("stray",))
    assert done.returncode == 1
    assert "FaultError: scale on sm_80" in done.stderr and "[global-bounds]" in done.stderr
    assert "after the end of 'y' of 2000 bytes" in done.stderr
    done = run(tmp_path, "--arch", "sm_80", "--keep-going", arguments=("stray",))
    assert done.returncode == 0 and "scale: [global-bounds]" in done.stderr


def test_an_unknown_architecture_is_refused(tmp_path):
    done = run(tmp_path, "--arch", "sm_100")
    assert done.returncode == 1
    assert "architecture must be one of ['sm_80', 'sm_86', 'sm_89', 'sm_90']" in done.stderr


def test_the_emulation_ends(monkeypatch):
    from sede_kernels.backends import triton as backend

    monkeypatch.setattr(backend, "_emulation", None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    before = backend.unavailable_reason()
    backend.emulate(backend.Emulation("sm_90", 3))
    assert backend.unavailable_reason() is None
    assert backend.emulated() == backend.Emulation("sm_90", 3)
    backend.emulate(None)
    assert backend.unavailable_reason() == before
