"""Conversions written as assembly against those that the compiler makes of ``x.to(dtype)``."""

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sede_kernels.backends.triton import interpreting
from sede_kernels.backends.triton.kernels.device import rounded

if interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)


@triton.jit
def _round_kernel(x, y, OWN: tl.constexpr, OPERAND: tl.constexpr):
    i = tl.arange(0, 64)  # two neighbours a thread
    wide = tl.load(x + i)
    narrow = rounded(wide, OPERAND) if OWN else wide.to(OPERAND)
    tl.store(y + i, narrow)


def _places(own: bool, name: str, dtype: object, capability: int) -> tuple[int, int]:
    """Which of the two loaded numbers becomes the low half of what is stored, and the high one."""
    source = ASTSource(
        _round_kernel,
        {"x": "*fp32", "y": f"*{name}", "OWN": "constexpr", "OPERAND": "constexpr"},
        {"OWN": own, "OPERAND": dtype},
        {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]},
    )
    options = {"num_warps": 1}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = compiled.asm["ptx"]
    loaded = re.search(r"ld\.global\.v2\.b32 \{ (%r\d+), (%r\d+) \}", text).groups()
    # PTX: the first source goes to the upper half.
    (high, low), *more = re.findall(r"cvt\.rn\.b?f16x2\.f32\s+%r\d+, (%r\d+), (%r\d+);", text)
    assert not more
    return loaded.index(low), loaded.index(high)


@pytest.mark.parametrize("capability", [80, 90])  # sm_100 moves pairs around
@pytest.mark.parametrize("name,dtype", [("bf16", tl.bfloat16), ("fp16", tl.float16)])
def test_neighbours_keep_their_order(name, dtype, capability):
    assert _places(False, name, dtype, capability) == (0, 1)
    assert _places(True, name, dtype, capability) == (0, 1)
