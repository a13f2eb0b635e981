"""Integer arithmetic against values worked out by hand (PTX ISA 9.7.1)."""

import pytest

from tests.ptx.lanes import check

BINARY = [
    ("add.s32", "s32", [1, -5, 2**31 - 1], [2, 3, 1], [3, -2, -(2**31)]),
    ("add.u16", "u16", [65535, 7], [1, 8], [0, 15]),
    ("add.s64", "s64", [2**62, -1], [2**62, -1], [-(2**63), -2]),
    ("sub.s32", "s32", [1, -(2**31)], [2, 1], [-1, 2**31 - 1]),
    ("sub.u64", "u64", [0, 9], [1, 4], [2**64 - 1, 5]),
    ("mul.lo.s32", "s32", [65536, -3], [65536, 7], [0, -21]),
    ("mul.lo.u16", "u16", [65535], [65535], [1]),
    ("mul.hi.s32", "s32", [2**30, -1], [8, 1], [2, -1]),
    ("mul.hi.u32", "u32", [2**31, 2**32 - 1], [4, 2**32 - 1], [2, 2**32 - 2]),
    ("mul.hi.u64", "u64", [2**63], [6], [3]),
    ("mul.hi.s64", "s64", [-(2**63)], [2], [-1]),
    ("div.s32", "s32", [7, -7, -(2**31), 5], [2, 2, -1, 0], [3, -3, -(2**31), -1]),
    ("div.u32", "u32", [7, 2**32 - 1], [2, 2], [3, 2**31 - 1]),
    ("rem.s32", "s32", [7, -7, -(2**31), 5], [3, 3, -1, 0], [1, -1, 0, 5]),
    ("rem.u64", "u64", [2**40 + 3], [2**20], [3]),
    ("min.s32", "s32", [-1, 4], [1, 3], [-1, 3]),
    ("min.u32", "u32", [2**32 - 1], [1], [1]),
    ("max.s32", "s32", [-1, 4], [1, 3], [1, 4]),
    ("max.u64", "u64", [2**64 - 1], [1], [2**64 - 1]),
    ("max.s16", "s16", [-5], [-6], [-5]),
    ("min.relu.s32", "s32", [-1, 4, 5], [1, 3, 7], [0, 3, 5]),
    ("max.relu.s32", "s32", [-2, 4, -7], [-1, 3, 2], [0, 4, 2]),
]


@pytest.mark.parametrize("opcode,kind,a,b,expected", BINARY, ids=[row[0] for row in BINARY])
def test_two_operands(opcode, kind, a, b, expected):
    check(opcode, kind, [kind, kind], [a, b], expected)


@pytest.mark.parametrize(
    "opcode,kind,a,expected",
    [
        ("neg.s32", "s32", [5, -(2**31)], [-5, -(2**31)]),
        ("neg.s64", "s64", [-9], [9]),
        ("neg.s16", "s16", [1], [-1]),
        ("abs.s32", "s32", [-5, 6, -(2**31)], [5, 6, -(2**31)]),
        ("abs.s64", "s64", [-(2**40)], [2**40]),
        ("brev.b32", "b32", [1, 0b110], [2**31, 0x60000000]),
    ],
)
def test_one_operand(opcode, kind, a, expected):
    check(opcode, kind, [kind], [a], expected)


@pytest.mark.parametrize(
    "opcode,kind,a,expected",
    [
        ("popc.b32", "b32", [0, 0xF0F0, 2**32 - 1], [0, 8, 32]),
        ("popc.b64", "b64", [2**63 + 1], [2]),
        ("clz.b32", "b32", [0, 1, 2**31], [32, 31, 0]),
        ("clz.b64", "b64", [0, 1], [64, 63]),
    ],
)
def test_counts_of_bits(opcode, kind, a, expected):
    check(opcode, "u32", [kind], [a], expected)


@pytest.mark.parametrize(
    "opcode,narrow,wide,a,b,expected",
    [
        ("mul.wide.s32", "s32", "s64", [-3, 2**31 - 1], [5, 2], [-15, 2**32 - 2]),
        ("mul.wide.u32", "u32", "u64", [2**32 - 1], [2**32 - 1], [2**64 - 2**33 + 1]),
        ("mul.wide.s16", "s16", "s32", [-300], [300], [-90000]),
        ("mul.wide.u16", "u16", "u32", [65535], [65535], [65535**2]),
    ],
)
def test_wide_products(opcode, narrow, wide, a, b, expected):
    check(opcode, wide, [narrow, narrow], [a, b], expected)


@pytest.mark.parametrize(
    "opcode,narrow,wide,a,b,c,expected",
    [
        ("mad.lo.s32", "s32", "s32", [3, 2**31 - 1], [-4, 2], [5, 3], [-7, 1]),
        ("mad.lo.u64", "u64", "u64", [2**33], [2**31], [7], [7]),
        ("mad.lo.u16", "u16", "u16", [300], [300], [1], [24465]),
        ("mad.wide.s32", "s32", "s64", [-2], [3], [-1], [-7]),
        ("mad.wide.u32", "u32", "u64", [2**32 - 1], [2], [5], [2**33 + 3]),
        ("mad.wide.s16", "s16", "s32", [-2], [3], [10], [4]),
        ("mad.wide.u16", "u16", "u32", [65535], [2], [1], [131071]),
    ],
)
def test_products_and_sums(opcode, narrow, wide, a, b, c, expected):
    check(opcode, wide, [narrow, narrow, wide], [a, b, c], expected)


def test_fields_of_bits():
    value = [0xABCD1234] * 5
    at, bits = [4, 28, 0, 40, 8], [8, 8, 0, 8, 255]
    check("bfe.u32", "u32", ["u32", "u32", "u32"], [value, at, bits], [0x23, 0xA, 0, 0, 0xABCD12])
    # The sign is the top bit of the field, or of a where the field goes beyond.
    at, bits = [4, 20, 28, 40], [8, 4, 4, 8]
    check("bfe.s32", "s32", ["s32", "u32", "u32"],
          [[0x1234AB34 - 2**32 + 0xA0000000] * 4, at, bits], [-77, 3, -5, -1])  # fmt: skip


def test_a_field_is_put_in():
    check(
        "bfi.b32", "b32", ["b32", "b32", "u32", "u32"],
        [[0xFF, 0x5, 0xFF, 0x3], [0, 0xFFFFFFFF, 7, 0], [8, 4, 32, 31], [8, 4, 8, 4]],
        [0xFF00, 0xFFFFFF5F, 7, 0x80000000],
    )  # fmt: skip


@pytest.mark.parametrize(
    "opcode,a,b,expected",
    [
        ("dp4a.u32.u32", 0x01020304, 0x05060708, 5 + 12 + 21 + 32 + 10),
        ("dp4a.s32.s32", 0xFF02FF04, 0x05060708, (-5 + 12 - 7 + 32 + 10)),
        ("dp4a.s32.u32", 0xFF000000, 0xFF000000, 10 - 255),
        ("dp4a.u32.s32", 0xFF000000, 0xFF000000, 10 - 255),
    ],
)
def test_dot_products_of_bytes(opcode, a, b, expected):
    check(opcode, "s32", ["b32", "b32", "s32"], [[a], [b], [10]], [expected])
