"""Warp instructions a second, on one core and on all: ``python -m tests.ptx.machine --speed``."""

import os
import time

from tests.ptx.machine.buffers import Out
from tests.ptx.machine.module import Module, Options

_BLOCKS, _THREADS, _ROUNDS = 32, 128, 400
_TEXT = """.version 8.7
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out)
{
.reg .pred %p<4>;
.reg .b32 %r<16>;
.reg .f32 %f<16>;
.reg .b64 %d<4>;
.shared .align 16 .b8 cells[8192];
mov.u32 %r0, %tid.x;
shl.b32 %r1, %r0, 4;
mov.u32 %r2, cells;
add.u32 %r1, %r1, %r2;
mov.u32 %r3, 0;
mov.b32 %r8, 0x3f803f80;
cvt.rn.f32.u32 %f0, %r0;
mov.f32 %f1, 0f3F000000;
mov.f32 %f2, 0f00000000;
mov.f32 %f3, 0f00000000;
mov.f32 %f4, 0f00000000;
mov.f32 %f5, 0f00000000;
ROUND:
BODY
add.u32 %r3, %r3, 1;
setp.lt.u32 %p0, %r3, ROUNDS;
@%p0 bra ROUND;
ld.param.u64 %d0, [out];
mov.u32 %r4, %ctaid.x;
shl.b32 %r4, %r4, 7;
add.u32 %r4, %r4, %r0;
mul.wide.u32 %d1, %r4, 4;
add.s64 %d0, %d0, %d1;
st.global.f32 [%d0], %f2;
ret;
}
"""
_BODIES = {
    "arithmetic": "fma.rn.f32 %f2, %f0, %f1, %f2;\nadd.u32 %r5, %r3, %r0;\nxor.b32 %r6, %r5, %r3;\n"
    * 4,
    "shared memory": "st.shared.v4.b32 [%r1], {%r3, %r3, %r3, %r3};\nbar.sync 0;\n"
    "ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1];\nbar.sync 0;\n",
    "matrix products": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, "
    "{%r8, %r8, %r8, %r8}, {%r8, %r8}, {%f2, %f3, %f4, %f5};\n" * 4,
}


def measure(body: str, threads: int) -> float:
    """Million warp instructions a second with so many blocks at a time."""
    module = Module(_TEXT.replace("BODY", body).replace("ROUNDS", str(_ROUNDS)))
    out = Out(_BLOCKS * _THREADS, "float32")
    started = time.perf_counter()
    faults = module.launch("k", (_BLOCKS,), (_THREADS,), [out], options=Options(threads=threads))
    seconds = time.perf_counter() - started
    if faults:
        raise RuntimeError("\n".join(map(str, faults)))
    return module.executed / seconds / 1e6


def main() -> None:
    """Print a table."""
    cores = os.cpu_count() or 1
    print(f"million warp instructions a second, all checks on: 1 core, {cores} cores")
    for name, body in _BODIES.items():
        single, every = measure(body, 1), measure(body, cores)
        print(f"{name:16} {single:8.2f} {every:8.2f}")
