"""Loading: what is refused, with its line; what is known of a run afterwards."""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER
from tests.ptx.machine import Module, Options, Out
from tests.ptx.test_memory import kernel

REFUSED = [
    ("frobnicate.b32 %r0, %r1;", "'frobnicate.b32 %r0, %r1' is not supported"),
    ("add.rz.f32 %r0, %r1, %r2;", ".rz is not supported here"),
    ("add.sat.s32 %r0, %r1, %r2;", ".sat is not supported here"),
    ("add.s32 %r0, %d1, %r2;", "'%d1' has 64 bits, the instruction 32"),
    ("add.s32 %r0, %r1;", "operand 3 is missing"),
    ("add.s32 %r0, %r1, unknown;", "'unknown' is not declared"),
    ("add.e4m3 %r0, %r1, %r2;", "type .e4m3 is not supported"),
    ("add.s32 [%r0], %r1, %r2;", "the result is no register"),
    ("mov.u32 %r0, %frobs;", None),
    ("bra NOWHERE;", "no label 'NOWHERE'"),
    ("@%r1 bra HERE;\nHERE:", "the guard is no predicate"),
    ("call (%r0), f, (%r1);", "calls are not supported"),
    ("bar.red.popc.u32 %r0, 0, %p0;", "the operation is not supported"),
    ("cp.async.cg.shared.global [%r0], [%d0], 8;", "copies of 8 bytes are not supported"),
    ("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", "type .e4m3x2 is not supported"),
    ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r0}, {%r0}, {%r0};", "only"),
    ("barrier.cluster.arrive;", "clusters are not supported"),
    ("ld.global.b32 %r0, %d0;", "an address in brackets is expected"),
    ("mov.b32 %r0, 12abc;", "'12abc' is not a number"),
]


@pytest.mark.parametrize("statement,text", REFUSED, ids=[row[0].split(";")[0] for row in REFUSED])
def test_what_is_not_known_is_refused_when_it_is_loaded(statement, text):
    if text is None:  # a special register is looked at when a warp starts
        with pytest.raises(RuntimeError, match="special register %frobs is not supported"):
            kernel("", statement).launch("k", (1,), (1,))
        return
    with pytest.raises(RuntimeError) as error:
        kernel("", statement)
    assert text in str(error.value)
    assert "line " in str(error.value)


@pytest.mark.parametrize("text", ["{", ".visible .entry k(", ".entry k() { .reg .b32 %r<4>;"])
def test_a_text_that_ends_early_is_refused(text):
    with pytest.raises(RuntimeError, match="line "):
        Module(HEADER + text)


def test_a_trap_ends_the_launch():
    with pytest.raises(RuntimeError, match="line 11: trap"):
        kernel("", "trap;").launch("k", (1,), (1,))


def test_arguments_and_names_are_checked():
    module = kernel(".param .u64 a", "")
    assert module.kernels == ["k"] and module.parameters("k") == [(8, 0)]
    with pytest.raises(ValueError, match="no kernel 'other'"):
        module.launch("other", (1,), (1,))
    with pytest.raises(ValueError, match="takes 1 arguments, got 2"):
        module.launch("k", (1,), (1,), [1, 2])
    with pytest.raises(RuntimeError, match="1 to 1024 threads"):
        module.launch("k", (1,), (1025,))


def test_faults_name_the_place_in_the_source():
    text = f"""{HEADER}
.visible .entry k()
{{
.reg .b32 %r<4>;
.shared .align 4 .b8 cells[16];
.loc 1 42 7
ld.shared.b32 %r0, [cells];
ret;
}}
.file 1 "/some/folder/kernel.py"
.section .debug_loc {{ .b8 1 }}
"""
    [fault] = Module(text).launch("k", (2,), (32,))
    assert "line 10 (kernel.py:42), block (0, 0, 0), warp 0" in fault.text
    assert "`ld.shared.b32 %r0, [cells]`" in fault.text
    assert fault.count == 64


def test_coverage_and_histogram():
    text = """mov.u32 %r0, %tid.x;
setp.lt.u32 %p0, %r0, 100;
@%p0 bra END;
mov.u32 %r1, 1;
END:
mov.u32 %r2, 2;"""
    module = kernel("", text)
    assert module.launch("k", (1,), (64,), options=Options(histogram=True)) == []
    ran = module.coverage("k")
    first = min(ran)
    assert [ran[first + n] for n in (0, 1, 2, 3, 5)] == [True, True, True, False, True]
    assert module.histogram == {"mov.u32": 4, "setp.lt.u32": 2, "bra": 2, "ret": 2}
    assert module.executed == 10 and module.lane_executed == 320


def test_dynamic_and_module_shared_memory():
    text = f"""{HEADER}
.shared .align 8 .b8 fixed[24];
.extern .shared .align 16 .b8 rest[];
.visible .entry k(.param .u64 a)
{{
.reg .b32 %r<4>;
.reg .b64 %d<4>;
ld.param.u64 %d0, [a];
mov.u32 %r0, fixed;
mov.u32 %r1, rest;
sub.u32 %r2, %r1, %r0;
st.global.b32 [%d0], %r2;
st.shared.b32 [rest+28], %r2;
ld.shared.b32 %r3, [%r1+28];
st.global.b32 [%d0+4], %r3;
ret;
}}
"""
    out = Out(2, np.uint32)
    assert Module(text).launch("k", (1,), (1,), [out], shared=32) == []
    assert out.get().tolist() == [32, 32]
    assert [f.kind for f in Module(text).launch("k", (1,), (1,), [out], shared=28)] == [
        "shared-bounds", "shared-bounds"
    ]  # fmt: skip


def test_grids_and_blocks_of_three_dimensions():
    text = """ld.param.u64 %d0, [a];
mov.u32 %r0, %ctaid.z;
mov.u32 %r1, %nctaid.y;
mov.u32 %r2, %ctaid.y;
mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.z;
mov.u32 %r2, %tid.z;
mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.y;
mov.u32 %r2, %tid.y;
mad.lo.u32 %r0, %r0, %r1, %r2;
mov.u32 %r1, %ntid.x;
mov.u32 %r2, %tid.x;
mad.lo.u32 %r0, %r0, %r1, %r2;
mul.wide.u32 %d1, %r0, 4;
add.s64 %d0, %d0, %d1;
st.global.b32 [%d0], %r0;"""
    out = Out(2 * 3 * 4 * 5 * 6, np.uint32)
    assert kernel(".param .u64 a", text).launch("k", (1, 3, 2), (6, 5, 4), [out]) == []
    assert out.get().tolist() == list(range(720))
