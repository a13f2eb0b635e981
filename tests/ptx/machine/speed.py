"""Warp instructions a second, on one core and on all: ``python -m tests.ptx.machine --speed``;
``--write records/ptx`` keeps them.
"""

import datetime
import json
import os
import platform
import time
from pathlib import Path

from tests.ptx.machine.buffers import Out
from tests.ptx.machine.module import Module, Options

#: In the folder of the records; each kind of instruction on one core and on all.
NAME = "speed.json"
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


def processor() -> str:
    """Its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(write: Path | None = None) -> None:
    """Print a table of the best of three; in the folder it becomes ``speed.json``."""
    cores = os.cpu_count() or 1
    print(f"million warp instructions a second, all checks on: 1 core, {cores} cores")
    found = {}
    for name, body in _BODIES.items():
        found[name] = [
            round(max(measure(body, threads) for _ in range(3)), 2) for threads in (1, cores)
        ]
        print(f"{name:16} {found[name][0]:8.2f} {found[name][1]:8.2f}")
    if write is not None:
        record = {
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "cores": cores,
            "load": round(os.getloadavg()[0], 1),
            "million_warp_instructions_a_second": found,
        }
        write.mkdir(parents=True, exist_ok=True)
        (write / NAME).write_text(json.dumps(record, indent=2) + "\n")
