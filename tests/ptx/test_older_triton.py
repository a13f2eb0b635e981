"""Three faults of older versions of Triton on sm_90, in the smallest kernels that show them.

3.6 leaves out the fence between a copied tile and the product that reads it, where the tile feeds
two products of a pipelined loop. 3.6 and 3.7 write the registers of a left operand again while the
product still reads them, and compute them after the ``wgmma.fence`` that orders them. One stage has
neither of the first two faults; the launch tables of these versions have it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import triton

from sede_kernels.backends.triton import interpreting, version_pair
from tests.ptx.machine.buffers import In, Out
from tests.ptx.machine.module import Fault, Module
from tests.ptx.older import kernels

FOLDER = Path(__file__).parent / "older"
FAULTS = {"twice": "proxy-fence", "halved": "wgmma-early", "parted": "wgmma-fence"}
#: Kernel -> fault -> the first version without it.
MENDED = {
    "twice": {"proxy-fence": (3, 7)},
    "halved": {"proxy-fence": (3, 7), "wgmma-early": (3, 8)},
    "parted": {"wgmma-fence": (3, 8)},
}


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy()


def _run(name: str, text: str) -> list[Fault]:
    """The faults; without any the result must be right."""
    torch.manual_seed(0)
    columns = kernels.TILES * kernels.J
    x = torch.randn(kernels.ROWS, kernels.D if name == "twice" else columns).bfloat16()
    y = torch.randn(columns, kernels.D).bfloat16()
    if name == "twice":
        want = (x.float() @ y.float().T).bfloat16().float() @ y.float()
    else:
        want = x.float() * 0.5 @ y.float()
    if name == "parted":
        y = y.T.contiguous()
    out = Out((kernels.ROWS, kernels.D), "float32")
    shared = int(text.splitlines()[0].split()[-1])
    faults = Module(text).launch(
        name, (1,), (32 * kernels.WARPS,), [In(_bits(x)), In(_bits(y)), out], shared=shared
    )
    if not faults:
        error = (torch.from_numpy(out.get()) - want).abs().max()
        assert error <= 2**-8 * want.abs().max()
    return faults


@pytest.mark.parametrize("file", ["twice-3.6.0", "halved-3.7.1", "parted-3.7.1"])
def test_the_machine_notices_what_older_versions_emit(file):
    name = file.split("-")[0]
    faults = _run(name, (FOLDER / f"{file}.ptx").read_text())
    assert {fault.kind for fault in faults} == {FAULTS[name]}


def test_the_missing_fence_is_all_that_is_wrong():
    lines = (FOLDER / "twice-3.6.0.ptx").read_text().splitlines(keepends=True)
    copied = next(i for i, line in enumerate(lines) if "cp.async.wait_group" in line)
    assert "bar.sync" in lines[copied + 1]
    lines.insert(copied + 2, "fence.proxy.async.shared::cta;\n")
    assert _run("twice", "".join(lines)) == []


def test_the_missing_wait_is_all_that_is_wrong():
    text = (FOLDER / "halved-3.7.1.ptx").read_text()
    before, after = text.rsplit("wgmma.wait_group.sync.aligned 1;", 1)  # at the end of the loop
    assert _run("halved", f"{before}wgmma.wait_group.sync.aligned 0;{after}") == []


def test_a_fence_before_each_product_is_all_that_is_missing():
    text = (FOLDER / "parted-3.7.1.ptx").read_text()
    fence = "wgmma.fence.sync.aligned;\n"
    assert _run("parted", text.replace("wgmma.mma_async", f"{fence}wgmma.mma_async")) == []


@pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_the_installed_version(name):
    kinds = {fault.kind for fault in _run(name, kernels.text(name, kernels.STAGES[name]))}
    version = version_pair(triton.__version__)
    assert kinds == {kind for kind, mended in MENDED[name].items() if version < mended}
    if name != "parted":
        assert _run(name, kernels.text(name, stages=1)) == []
