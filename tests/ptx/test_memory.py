"""Loads, stores and atomic operations (PTX ISA 9.7.9 ld, st; 9.7.13 atom, red)."""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER, run
from tests.ptx.machine import In, InOut, Module, Out


def kernel(parameters: str, body: str) -> Module:
    """A module with one kernel, k, that has registers for everything here."""
    return Module(
        f"""{HEADER}
.visible .entry k({parameters})
{{
.reg .pred %p<8>;
.reg .b16 %h<8>;
.reg .b32 %r<32>;
.reg .b64 %d<32>;
{body}
ret;
}}
"""
    )


def test_vectors_and_signs():
    source = np.arange(-16, 16, dtype=np.int8)
    out = Out(5, np.uint32)
    module = kernel(
        ".param .u64 a, .param .u64 b",
        """ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
ld.global.nc.L1::evict_last.v4.b32 {%r0, %r1, %r2, %r3}, [%d0];
st.global.b32 [%d1], %r3;
ld.global.s8 %r4, [%d0+1];
ld.global.u8 %r5, [%d0+1];
ld.global.s8 %h0, [%d0+2];
st.global.v2.b32 [%d1+8], {%r4, %r5};
st.global.b16 [%d1+16], %h0;
st.global.b8 [%d1+18], %r5;
st.global.b8 [%d1+19], 7;""",
    )
    assert module.launch("k", (1,), (1,), [In(source), out]) == []
    words = source.view(np.uint32)
    found = out.get()
    assert found[0] == words[3]
    assert found[2] == 2**32 - 15 and found[3] == 241
    assert found[4] == 7 << 24 | 241 << 16 | 0xFFF2


def test_parameters_of_every_width():
    out = Out(4, np.float64)
    module = kernel(
        ".param .u64 a, .param .u8 b, .param .s16 c, .param .f32 d, .param .align 8 .b8 e[16]",
        """ld.param.u64 %d0, [a];
ld.param.u8 %h0, [b];
cvt.rn.f64.u16 %d1, %h0;
ld.param.s16 %r0, [c];
cvt.rn.f64.s32 %d2, %r0;
ld.param.f32 %r1, [d];
cvt.f64.f32 %d3, %r1;
ld.param.v2.u32 {%r2, %r3}, [e+8];
cvt.rn.f64.u32 %d4, %r3;
st.global.v2.f64 [%d0], {%d1, %d2};
st.global.v2.f64 [%d0+16], {%d3, %d4};""",
    )
    block = np.array([1, 2, 3, 4], np.uint32).tobytes()
    assert module.launch("k", (1,), (1,), [out, 200, -5, 0.5, block]) == []
    assert out.get().tolist() == [200.0, -5.0, 0.5, 4.0]


def test_module_variables():
    text = f"""{HEADER}
.global .align 4 .u32 table[3] = {{10, 20, -1}};
.const .align 8 .f64 constant = 0d3FF8000000000000;
.visible .entry k(.param .u64 a)
{{
.reg .b32 %r<4>;
.reg .b64 %d<4>;
ld.param.u64 %d0, [a];
ld.global.u32 %r0, [table+4];
st.global.u32 [%d0], %r0;
mov.u64 %d1, table;
ld.global.u32 %r1, [%d1+8];
st.global.u32 [%d0+4], %r1;
ld.const.f64 %d2, [constant];
cvt.rzi.s32.f64 %r2, %d2;
st.global.u32 [%d0+8], %r2;
ret;
}}
"""
    out = Out(3, np.uint32)
    assert Module(text).launch("k", (1,), (1,), [out]) == []
    assert out.get().tolist() == [20, 2**32 - 1, 1]


ATOMS = [
    ("add.u32", np.uint32, [5], 3, 5 + 32 * 3),
    ("add.s64", np.int64, [5], -3, 5 - 96),
    ("add.f32", np.float32, [1.0], 0.5, 17.0),
    ("add.f64", np.float64, [1.0], 0.25, 9.0),
    ("min.s32", np.int32, [5], -3, -3),
    ("min.u32", np.uint32, [5], 7, 5),
    ("max.s32", np.int32, [-5], -9, -5),
    ("max.u64", np.uint64, [5], 7, 7),
    ("and.b32", np.uint32, [0b1110], 0b0111, 0b0110),
    ("or.b32", np.uint32, [0b1000], 0b0001, 0b1001),
    ("xor.b32", np.uint32, [0b1010], 0b0110, 0b1010),  # an even number of times
    ("exch.b32", np.uint32, [5], 9, 9),
    ("inc.u32", np.uint32, [5], 9, 7),  # 5 .. 9, then 0 .. : 32 steps in a cycle of 10
    ("dec.u32", np.uint32, [5], 9, 3),
]


@pytest.mark.parametrize("shared", [False, True], ids=["global", "shared"])
@pytest.mark.parametrize("operation,dtype,start,by,expected", ATOMS, ids=[row[0] for row in ATOMS])
def test_atomic_operations(operation, dtype, start, by, expected, shared):
    cell, value = InOut(np.array(start, dtype)), In(np.array([by], dtype))
    kind = f"b{np.dtype(dtype).itemsize * 8}"
    register = "%d5" if kind == "b64" else "%r5"
    other = "%d6" if kind == "b64" else "%r6"
    place = "[%d0]" if not shared else "[cell]"
    copy_in = f"ld.global.{kind} {other}, [%d0];\nst.shared.{kind} [cell], {other};" * shared
    copy_out = f"ld.shared.{kind} {other}, [cell];\nst.global.{kind} [%d0], {other};" * shared
    module = kernel(
        ".param .u64 a, .param .u64 b",
        f""".shared .align 8 .b8 cell[8];
ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
ld.global.{kind} {register}, [%d1];
{copy_in}
bar.warp.sync -1;
red.relaxed.gpu.{"shared" if shared else "global"}.{operation} {place}, {register};
bar.warp.sync -1;
{copy_out}""",
    )
    assert module.launch("k", (1,), (32,), [cell, value]) == []
    assert cell.get()[0] == expected


def test_the_old_value_and_compare_and_swap():
    cell, out = InOut(np.array([5], np.uint32)), Out(3, np.uint32)
    module = kernel(
        ".param .u64 a, .param .u64 b",
        """ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
atom.global.add.u32 %r0, [%d0], 2;
atom.global.cas.b32 %r1, [%d0], 7, 100;
atom.cas.b32 %r2, [%d0], 7, 200;
st.global.b32 [%d1], %r0;
st.global.b32 [%d1+4], %r1;
st.global.b32 [%d1+8], %r2;""",
    )
    assert module.launch("k", (1,), (1,), [cell, out]) == []
    assert out.get().tolist() == [5, 7, 100] and cell.get()[0] == 100


def test_atomics_of_many_blocks_add_up():
    cell = InOut(np.zeros(1, np.uint32))
    module = kernel(".param .u64 a", "ld.param.u64 %d0, [a];\nred.global.add.u32 [%d0], 1;")
    assert module.launch("k", (500,), (64,), [cell]) == []
    assert cell.get()[0] == 32000


def test_instructions_without_effect():
    body = """.reg .b64 %policy;
createpolicy.fractional.L2::evict_first.b64 %policy, 1.0;
prefetch.global.L2 [p_d];
prefetchu.L1 [p_d];
griddepcontrol.wait;
nanosleep.u32 20;
membar.gl;
fence.acq_rel.gpu;
mov.u32 %d, 1;"""
    assert run(body, {"d": "u32"}, {})["d"].all()


STRAY = [
    ("ld.global.b32 %r0, [%d0+4];", "global-bounds", "0 bytes after the end of 'input'"),
    ("ld.global.b32 %r0, [%d0+-4];", "global-bounds", "4 bytes before 'input'"),
    ("ld.global.b32 %r0, [%d0+2];", "misaligned", "4 bytes at"),
    ("st.global.b32 [%d0], 1;", "global-readonly", "writes to the input 'input'"),
    ("ld.global.b32 %r0, [%d1];", "global-unwritten", "'output' at byte 0"),
    ("ld.shared.b32 %r0, [cells+8];", "shared-bounds", "4 bytes at offset 8 of"),
    ("st.shared.v2.b32 [cells+4], {%r1, %r1};", "misaligned", "8 bytes at offset 4"),
    ("ld.shared.b32 %r0, [cells];", "shared-unwritten", "offset 0, which nobody wrote"),
]


@pytest.mark.parametrize("body,kind,text", STRAY, ids=[row[1] for row in STRAY])
def test_stray_accesses_are_reported(body, kind, text):
    module = kernel(
        ".param .u64 a, .param .u64 b",
        f".shared .align 8 .b8 cells[8];\nmov.b32 %r1, 0;\n"
        f"ld.param.u64 %d0, [a];\nld.param.u64 %d1, [b];\n{body}",
    )
    arguments = [In(np.ones(1, np.uint32)), Out(1, np.uint32)]
    faults = module.launch("k", (1,), (1,), arguments)
    if kind == "shared-bounds":  # a block has shared memory in steps of 16 bytes
        faults = kernel("", ".shared .align 16 .b8 cells[16];\nld.shared.b32 %r0, [cells+16];"
                        ).launch("k", (1,), (1,))  # fmt: skip
        text = "4 bytes at offset 16 of 16"
    assert [fault.kind for fault in faults] == [kind]
    assert text in faults[0].text


def test_blocks_that_share_bytes_are_reported():
    write = "ld.param.u64 %d0, [a];\nst.global.b32 [%d0], 1;"
    faults = kernel(".param .u64 a", write).launch("k", (3,), (1,), [Out(1, np.uint32)])
    assert [fault.kind for fault in faults] == ["global-race"]
    assert "several blocks write 4 bytes of 'output'" in faults[0].text

    read = """ld.param.u64 %d0, [a];
mov.u32 %r0, %ctaid.x;
setp.eq.u32 %p0, %r0, 0;
@%p0 st.global.b32 [%d0], 1;
@!%p0 ld.global.b32 %r1, [%d0];"""
    faults = kernel(".param .u64 a", read).launch("k", (2,), (1,), [InOut(np.ones(1, np.uint32))])
    assert [fault.kind for fault in faults] == ["global-race"]
    assert "one block writes and others read 4 bytes" in faults[0].text


def test_blocks_may_write_neighbouring_bytes():
    body = """ld.param.u64 %d0, [a];
mov.u32 %r0, %ctaid.x;
cvt.u64.u32 %d1, %r0;
add.s64 %d0, %d0, %d1;
st.global.b8 [%d0], %r0;"""
    out = Out(9, np.uint8)
    assert kernel(".param .u64 a", body).launch("k", (9,), (1,), [out]) == []
    assert out.get().tolist() == list(range(9))
