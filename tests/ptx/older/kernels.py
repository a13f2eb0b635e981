"""The kernels, and how they are compiled: no driver, no GPU.

``python -m tests.ptx.older.kernels --write tests/ptx/older`` keeps what the installed Triton makes.
"""

import argparse
import os
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: A tile of the left operand, rows of the right one and its columns, and how many tiles there are.
ROWS, J, D, TILES, WARPS = 64, 32, 32, 5, 4


@triton.jit
def twice(x, y, out, TILES: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    """(x y^T) y: a copied tile feeds two products."""
    row, j, d = tl.arange(0, ROWS), tl.arange(0, J), tl.arange(0, D)
    a = tl.load(x + row[:, None] * D + d[None, :])
    acc = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, TILES * J, J):
        b = tl.load(y + (first + j)[:, None] * D + d[None, :])
        s = tl.dot(a, tl.trans(b))
        acc = tl.dot(s.to(a.dtype), b, acc)
    tl.store(out + row[:, None] * D + d[None, :], acc)


@triton.jit
def halved(x, y, out, TILES: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    """(x / 2) y: the left operand is computed, and multiplied from registers."""
    row, j, d = tl.arange(0, ROWS), tl.arange(0, J), tl.arange(0, D)
    acc = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, TILES * J, J):
        a = tl.load(x + row[:, None] * (TILES * J) + (first + j)[None, :])
        a = (a.to(tl.float32) * 0.5).to(y.dtype.element_ty)
        b = tl.load(y + (first + j)[:, None] * D + d[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(out + row[:, None] * D + d[None, :], acc)


@triton.jit
def parted(x, y, out, TILES: tl.constexpr, ROWS: tl.constexpr, J: tl.constexpr, D: tl.constexpr):
    """(x / 2) y^T: the left operand is computed in fp32, and multiplied in two parts."""
    row, j, d = tl.arange(0, ROWS), tl.arange(0, J), tl.arange(0, D)
    acc = tl.zeros((ROWS, J), tl.float32)
    for first in range(0, TILES * D, D):
        a = tl.load(x + row[:, None] * (TILES * D) + (first + d)[None, :]).to(tl.float32) * 0.5
        b = tl.load(y + j[:, None] * (TILES * D) + (first + d)[None, :])
        for _ in tl.static_range(2):
            part = a.to(b.dtype)
            acc = tl.dot(part, tl.trans(b), acc)
            a = a - part.to(tl.float32)
    tl.store(out + row[:, None] * J + j[None, :], acc)


KERNELS = {"twice": twice, "halved": halved, "parted": parted}
#: With which each shows one fault and no other.
STAGES = {"twice": 2, "halved": 2, "parted": 1}


def text(name: str, stages: int) -> str:
    """PTX of the installed Triton; its first line says how much shared memory a launch needs."""
    sizes = {"TILES": TILES, "ROWS": ROWS, "J": J, "D": D}
    types = {"x": "*bf16", "y": "*bf16", "out": "*fp32", **dict.fromkeys(sizes, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    compiled = triton.compile(
        ASTSource(KERNELS[name], types, sizes, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": WARPS, "num_stages": stages},
    )
    lines = [line for line in compiled.asm["ptx"].splitlines() if line.strip()]
    code = [line for line in lines if not line.lstrip().startswith("//")]
    return "\n".join([f"// shared {compiled.metadata.shared}", *code]) + "\n"


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(prog="python -m tests.ptx.older.kernels", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="DIR", required=True)
    folder = parser.parse_args().write
    for name in KERNELS:
        (folder / f"{name}-{triton.__version__}.ptx").write_text(text(name, STAGES[name]))


if __name__ == "__main__":
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    main()
