"""Conversions against values worked out by hand (PTX ISA 9.7.9 cvt, cvta)."""

import pytest

from tests.ptx.lanes import check, run

NAN, INF = float("nan"), float("inf")
BIG = 2.0**40

CASES = [
    # Integers: truncation, extension, saturation.
    ("cvt.u16.u32", "u16", "u32", [0x12345678], [0x5678]),
    ("cvt.u32.u16", "u32", "u16", [0xFFFF], [0xFFFF]),
    ("cvt.s32.s16", "s32", "s16", [-2], [-2]),
    ("cvt.s64.s32", "s64", "s32", [-3], [-3]),
    ("cvt.u64.u32", "u64", "u32", [2**32 - 1], [2**32 - 1]),
    ("cvt.u32.u64", "u32", "u64", [2**40 + 7], [7]),
    ("cvt.u64.s32", "u64", "s32", [-1], [2**64 - 1]),
    ("cvt.sat.s16.s32", "s16", "s32", [100000, -100000, 5], [32767, -32768, 5]),
    ("cvt.sat.u16.s32", "u16", "s32", [-5, 70000, 9], [0, 65535, 9]),
    ("cvt.sat.s32.u32", "s32", "u32", [2**32 - 1], [2**31 - 1]),
    ("cvt.sat.u32.u64", "u32", "u64", [2**40], [2**32 - 1]),
    # Integers to floats.
    ("cvt.rn.f32.s32", "f32", "s32", [-7, 2**24 + 1], [-7.0, 2.0**24]),
    ("cvt.rn.f32.u32", "f32", "u32", [2**32 - 1], [2.0**32]),
    ("cvt.rz.f32.u32", "f32", "u32", [2**24 + 1], [2.0**24]),
    ("cvt.rp.f32.s32", "f32", "s32", [2**24 + 1], [2.0**24 + 2]),
    ("cvt.rn.f32.s64", "f32", "s64", [-(2**40)], [-(2.0**40)]),
    ("cvt.rn.f64.s32", "f64", "s32", [-7], [-7.0]),
    ("cvt.rn.f64.u64", "f64", "u64", [2**53], [2.0**53]),
    ("cvt.rn.f16.s32", "f16", "s32", [2049], [2048.0]),
    ("cvt.rn.bf16.s32", "bf16", "s32", [257], [256.0]),
    ("cvt.rn.f32.u8", "f32", "u16", [300], [44.0]),
    # Floats to integers: out of range is the nearest, NaN is zero.
    ("cvt.rzi.s32.f32", "s32", "f32", [-1.7, BIG, -BIG, NAN], [-1, 2**31 - 1, -(2**31), 0]),
    ("cvt.rni.s32.f32", "s32", "f32", [0.5, 1.5, -2.5], [0, 2, -2]),
    ("cvt.rmi.s32.f32", "s32", "f32", [-1.5], [-2]),
    ("cvt.rpi.s32.f32", "s32", "f32", [1.25], [2]),
    ("cvt.rzi.u32.f32", "u32", "f32", [-1.0, 3.9, 2.0**33], [0, 3, 2**32 - 1]),
    ("cvt.rzi.s64.f64", "s64", "f64", [-(2.0**62)], [-(2**62)]),
    ("cvt.rzi.ftz.s32.f32", "s32", "f32", [2.0**-140], [0]),
    # Floats to floats.
    ("cvt.f64.f32", "f64", "f32", [1.5], [1.5]),
    ("cvt.rn.f32.f64", "f32", "f64", [1 + 2.0**-25], [1.0]),
    ("cvt.rp.f32.f64", "f32", "f64", [1 + 2.0**-25], [1 + 2.0**-23]),
    ("cvt.rz.f32.f64", "f32", "f64", [-1 - 2.0**-25], [-1.0]),
    ("cvt.rm.f32.f64", "f32", "f64", [-1 - 2.0**-25], [-1 - 2.0**-23]),
    ("cvt.rpi.f32.f32", "f32", "f32", [1.25, -1.5], [2.0, -1.0]),
    ("cvt.rmi.f32.f32", "f32", "f32", [1.75, -1.5], [1.0, -2.0]),
    ("cvt.rni.ftz.f32.f32", "f32", "f32", [2.5], [2.0]),
    ("cvt.ftz.sat.f32.f32", "f32", "f32", [1.5, -1.0, 0.25, NAN], [1.0, 0.0, 0.25, 0.0]),
    ("cvt.f32.bf16", "f32", "bf16", [-1.5], [-1.5]),
    ("cvt.f32.f16", "f32", "f16", [-1.5, 2.0**-24], [-1.5, 2.0**-24]),
    ("cvt.rn.bf16.f32", "bf16", "f32", [1 + 2.0**-8, 1 + 3 * 2.0**-8], [1.0, 1 + 2.0**-6]),
    ("cvt.rz.bf16.f32", "bf16", "f32", [1 + 3 * 2.0**-8], [1 + 2.0**-7]),
    ("cvt.rn.f16.f32", "f16", "f32", [1 + 2.0**-11, 65519.0, 65520.0, 2.0**-25],
     [1.0, 65504.0, INF, 0.0]),
    ("cvt.rn.f16.f64", "f16", "f64", [3 * 2.0**-25], [2.0**-23]),
]  # fmt: skip


@pytest.mark.parametrize("opcode,to,source,a,expected", CASES, ids=[row[0] for row in CASES])
def test_conversions(opcode, to, source, a, expected):
    check(opcode, to, [source], [a], expected)


def test_two_floats_become_two_halves():
    # The first source is the upper half.
    columns = [[1.0, 65536.0], [-2.0, 1 + 2.0**-9]]
    check("cvt.rn.bf16x2.f32", "bf16x2", ["f32", "f32"], columns, [(-2.0, 1.0), (1.0, 65536.0)])
    check("cvt.rn.f16x2.f32", "f16x2", ["f32", "f32"], [*columns[:1], [-2.0, 0.5]],
          [(-2.0, 1.0), (0.5, INF)])  # fmt: skip


def test_tf32_keeps_ten_bits_of_the_fraction():
    half = 2.0**-11
    values = [1 + half, 1 + 3 * half, INF]
    # Ties away from zero, and ties to even.
    check("cvt.rna.tf32.f32", "f32", ["f32"], [values], [1 + 2 * half, 1 + 4 * half, INF])
    check("cvt.rn.tf32.f32", "f32", ["f32"], [values], [1.0, 1 + 4 * half, INF])


def test_a_wider_register_takes_a_narrow_type():
    found = run("cvt.u32.u8 %d, %a;\ncvt.s32.s8 %e, %a;", {"d": "u32", "e": "s32"},
                {"a": ("u32", [0x1FF])})  # fmt: skip
    assert found["d"][0] == 0xFF and found["e"][0] == -1


def test_addresses_reach_the_same_memory_through_every_space():
    body = """.shared .align 4 .b8 cells[128];
.local .align 4 .b8 own[8];
.reg .b64 %g<6>;
.reg .b32 %x;
mov.u64 %g0, cells;
cvta.shared.u64 %g1, %g0;
mul.wide.u32 %g2, %lane, 4;
add.s64 %g3, %g1, %g2;
st.b32 [%g3], %lane;
cvta.to.shared.u64 %g4, %g3;
ld.shared.b32 %d, [%g4];
mov.u64 %g0, own;
cvta.local.u64 %g1, %g0;
st.b32 [%g1+4], %lane;
cvta.to.local.u64 %g4, %g1;
ld.local.b32 %e, [%g4+4];
mov.b64 %g0, p_d;
cvta.param.u64 %g1, %g0;
ld.param.b64 %g2, [p_d];
ld.b64 %g3, [%g1];
sub.s64 %g4, %g2, %g3;
cvt.u32.u64 %f, %g4;
cvta.to.global.u64 %g1, %g2;
sub.s64 %g4, %g2, %g1;
cvt.u32.u64 %x, %g4;
add.u32 %f, %f, %x;"""
    found = run(body, {"d": "u32", "e": "u32", "f": "u32"}, {})
    assert found["d"].tolist() == found["e"].tolist() == list(range(32))
    assert not found["f"].any()
