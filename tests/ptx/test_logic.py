"""Logic, shifts, permutations, comparisons, selection and moves, against values by hand."""

import pytest

from tests.ptx.lanes import check, run

BINARY = [
    ("and.b32", "b32", [0b1100, 2**32 - 1], [0b1010, 5], [0b1000, 5]),
    ("and.b64", "b64", [2**40 + 3], [2**40 + 1], [2**40 + 1]),
    ("and.b16", "b16", [0xF0F0], [0xFF00], [0xF000]),
    ("or.b32", "b32", [0b1100], [0b1010], [0b1110]),
    ("xor.b32", "b32", [0b1100], [0b1010], [0b0110]),
    ("xor.b64", "b64", [2**63], [1], [2**63 + 1]),
    ("and.pred", "pred", [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]),
    ("or.pred", "pred", [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]),
    ("xor.pred", "pred", [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]),
]


@pytest.mark.parametrize("opcode,kind,a,b,expected", BINARY, ids=[row[0] for row in BINARY])
def test_two_operands(opcode, kind, a, b, expected):
    check(opcode, kind, [kind, kind], [a, b], expected)


@pytest.mark.parametrize(
    "opcode,kind,a,expected",
    [
        ("not.b32", "b32", [0, 5], [2**32 - 1, 2**32 - 6]),
        ("not.b16", "b16", [0xFF], [0xFF00]),
        ("not.pred", "pred", [0, 1], [1, 0]),
        ("mov.b32", "b32", [7], [7]),
        ("mov.b64", "b64", [2**60], [2**60]),
        ("mov.b16", "b16", [65535], [65535]),
        ("mov.f32", "f32", [1.5], [1.5]),
        ("mov.pred", "pred", [1, 0], [1, 0]),
    ],
)
def test_one_operand(opcode, kind, a, expected):
    check(opcode, kind, [kind], [a], expected)


@pytest.mark.parametrize(
    "opcode,kind,a,b,expected",
    [
        ("shl.b32", "b32", [3, 1, 1], [4, 31, 32], [48, 2**31, 0]),
        ("shl.b64", "b64", [1, 1], [63, 64], [2**63, 0]),
        ("shl.b16", "b16", [0x8001], [1], [2]),
        ("shr.u32", "u32", [2**31, 7], [31, 32], [1, 0]),
        ("shr.s32", "s32", [-8, -1, 8], [1, 99, 2], [-4, -1, 2]),
        ("shr.u64", "u64", [2**63], [60], [8]),
        ("shr.s64", "s64", [-16], [2], [-4]),
        ("shr.s16", "s16", [-4], [1], [-2]),
        ("shr.u16", "u16", [0xFFFF], [8], [0xFF]),
        ("shr.b32", "b32", [2**31], [4], [2**27]),
    ],
)
def test_shifts(opcode, kind, a, b, expected):
    check(opcode, kind, [kind, "u32"], [a, b], expected)


@pytest.mark.parametrize(
    "opcode,c,expected",
    [
        ("shf.l.wrap.b32", [8, 32, 40], [0x445566AA, 0x33445566, 0x445566AA]),
        ("shf.l.clamp.b32", [8, 32, 40], [0x445566AA, 0xAABBCCDD, 0xAABBCCDD]),
        ("shf.r.wrap.b32", [8, 32, 40], [0x66AABBCC, 0xAABBCCDD, 0x66AABBCC]),
        ("shf.r.clamp.b32", [8, 32, 40], [0x66AABBCC, 0x33445566, 0x33445566]),
    ],
)
def test_shifts_of_two_words(opcode, c, expected):
    check(opcode, "b32", ["b32", "b32", "u32"], [[0xAABBCCDD], [0x33445566], c], expected)


def test_any_function_of_three_bits():
    a, b, c = 0xF0, 0xCC, 0xAA  # the columns of a truth table
    for table in (0x80, 0xFE, 0x96, 0xCA, 0x01):
        expected = table if not table & 1 else 0xFFFFFF00 | table
        check("lop3.b32", "b32", ["b32"] * 3, [[a], [b], [c]], [expected], tail=f", {table}")


def test_bytes_are_chosen():
    values = [[0x44332211], [0x88776655], [0x3210, 0x7654, 0x0123, 0x8CF4]]
    check("prmt.b32", "b32", ["b32"] * 3, values,
          [0x44332211, 0x88776655, 0x11223344, 0x0000FF55])  # fmt: skip
    # Bit 3 of a choice repeats the sign of its byte.
    check("prmt.b32", "b32", ["b32"] * 3, [[0x000000F1], [0], [0x9998]], [0x000000FF])


NAN = float("nan")
COMPARISONS = [
    ("eq.s32", "s32", [1, 2], [1, 3], [1, 0]),
    ("ne.s32", "s32", [1, 2], [1, 3], [0, 1]),
    ("lt.s32", "s32", [-1, 2], [1, 2], [1, 0]),
    ("le.s32", "s32", [-1, 2], [1, 2], [1, 1]),
    ("gt.u32", "u32", [2**32 - 1, 2], [1, 2], [1, 0]),
    ("ge.s64", "s64", [-1, 2], [1, 2], [0, 1]),
    ("lo.u32", "u32", [1], [2**32 - 1], [1]),
    ("ls.u32", "u32", [1, 1], [1, 0], [1, 0]),
    ("hi.u64", "u64", [2**63], [1], [1]),
    ("hs.u32", "u32", [1], [1], [1]),
    ("eq.b16", "b16", [1, 2], [1, 3], [1, 0]),
    ("lt.s16", "s16", [-1], [0], [1]),
    ("lt.f32", "f32", [1.0, NAN, -0.0], [2.0, 1.0, 0.0], [1, 0, 0]),
    ("eq.f32", "f32", [0.0, NAN], [-0.0, NAN], [1, 0]),
    ("ne.f32", "f32", [1.0, NAN], [2.0, 1.0], [1, 0]),
    ("equ.f32", "f32", [1.0, NAN, 1.0], [1.0, 1.0, 2.0], [1, 1, 0]),
    ("neu.f32", "f32", [1.0, NAN], [1.0, 1.0], [0, 1]),
    ("ltu.f32", "f32", [1.0, NAN, 3.0], [2.0, 1.0, 2.0], [1, 1, 0]),
    ("leu.f32", "f32", [2.0, NAN, 3.0], [2.0, 1.0, 2.0], [1, 1, 0]),
    ("gtu.f32", "f32", [2.0, NAN, 3.0], [2.0, 1.0, 2.0], [0, 1, 1]),
    ("geu.f64", "f64", [2.0, NAN, 1.0], [2.0, 1.0, 2.0], [1, 1, 0]),
    ("num.f32", "f32", [1.0, NAN], [2.0, 1.0], [1, 0]),
    ("nan.f32", "f32", [1.0, NAN], [2.0, 1.0], [0, 1]),
    ("gt.ftz.f32", "f32", [2.0**-140, 1.0], [0.0, 0.0], [0, 1]),
    ("gt.bf16", "bf16", [2.0, -1.0], [1.0, 1.0], [1, 0]),
    ("le.f16", "f16", [0.5, 2.0], [0.5, 1.0], [1, 0]),
]


@pytest.mark.parametrize(
    "comparison,kind,a,b,expected", COMPARISONS, ids=[row[0] for row in COMPARISONS]
)
def test_comparisons(comparison, kind, a, b, expected):
    check(f"setp.{comparison}", "pred", [kind, kind], [a, b], expected)


@pytest.mark.parametrize(
    "combination,expected,opposite",
    [("and", [0, 1, 0, 0], [0, 0, 0, 1]), ("or", [1, 1, 0, 1], [0, 1, 1, 1]),
     ("xor", [1, 0, 0, 1], [0, 1, 1, 0])],
)  # fmt: skip
def test_a_comparison_combined_with_a_predicate(combination, expected, opposite):
    sources = {
        "a": ("s32", [1, 1, 5, 5]), "b": ("s32", [2, 2, 2, 2]), "c": ("pred", [0, 1, 0, 1])
    }  # fmt: skip
    both = {"p": "pred", "q": "pred"}
    found = run(f"setp.lt.{combination}.s32 %p|%q, %a, %b, %c;", both, sources)
    assert found["p"][:4].tolist() == expected
    assert found["q"][:4].tolist() == opposite
    inverted = run(f"setp.lt.{combination}.s32 %p, %a, %b, !%c;", {"p": "pred"}, sources)
    swapped = {**sources, "c": ("pred", [1, 0, 1, 0])}
    straight = run(f"setp.lt.{combination}.s32 %p, %a, %b, %c;", {"p": "pred"}, swapped)
    assert inverted["p"][:4].tolist() == straight["p"][:4].tolist()


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_selection(kind):
    check(f"selp.{kind}", kind, [kind, kind, "pred"], [[1, 1], [2, 2], [1, 0]], [1, 2])


def test_vectors_are_packed_and_unpacked():
    sources = {"a": ("b32", [0x11112222]), "b": ("b32", [0x33334444])}
    body = """.reg .b16 %h<4>;
mov.b64 %d, {%a, %b};
mov.b64 {%h0, %h1, %h2, %h3}, %d;
mov.b32 %e, {%h3, %h0};
mov.b64 {_, %f}, %d;"""
    found = run(body, {"d": "b64", "e": "b32", "f": "b32"}, sources)
    assert found["d"][0] == 0x3333444411112222
    assert found["e"][0] == 0x22223333
    assert found["f"][0] == 0x33334444


def test_vectors_of_bytes():
    """As conversions of 8-bit rows take them apart: registers of a byte, with a sign or without."""
    body = """.reg .s8 s<4>;
.reg .b8 %u<4>;
.reg .f32 %x;
mov.b32 {s0, s1, s2, s3}, %a;
cvt.rn.f32.s8 %d, s0;
cvt.rn.f32.s8 %x, s3;
add.f32 %d, %d, %x;
mov.b32 {%u0, %u1, %u2, %u3}, %a;
cvt.u32.u8 %e, %u2;
mov.b32 %f, {%u3, %u2, %u1, %u0};"""
    found = run(body, {"d": "f32", "e": "u32", "f": "b32"}, {"a": ("b32", [0x80C01205])})
    assert found["d"][0] == 5 - 128
    assert found["e"][0] == 0xC0
    assert found["f"][0] == 0x0512C080


def test_special_registers():
    body = """.reg .b32 %x;
mov.u32 %d, %tid.x;
mov.u32 %x, %ntid.x;
mad.lo.u32 %d, %x, 1000, %d;
mov.u32 %e, %lanemask_le;
mov.u32 %x, WARP_SZ;
add.u32 %f, %x, -1;"""
    found = run(body, {"d": "u32", "e": "u32", "f": "u32"}, {})
    assert found["d"].tolist() == [32000 + lane for lane in range(32)]
    assert found["e"].tolist() == [(2 << lane) - 1 for lane in range(32)]
    assert found["f"][0] == 31
