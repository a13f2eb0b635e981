"""Floating-point arithmetic against values worked out by hand (PTX ISA 9.7.3, 9.7.4)."""

import pytest

from tests.ptx.lanes import check

NAN, INF = float("nan"), float("inf")
TINY = 2.0**-149  # the smallest subnormal
EPS = 2.0**-23

BINARY = [
    ("add.f32", "f32", [1.0, INF, 2.0**24], [2.5, -INF, 1.0], [3.5, NAN, 2.0**24]),
    ("add.rn.f32", "f32", [1.0], [EPS / 2], [1.0]),
    ("add.f64", "f64", [2.0**53], [2.0], [2.0**53 + 2]),
    ("add.ftz.f32", "f32", [TINY, 1.0], [0.0, 1.0], [0.0, 2.0]),
    ("sub.f32", "f32", [1.0, TINY], [3.0, 0.0], [-2.0, TINY]),
    ("sub.ftz.f32", "f32", [TINY], [0.0], [0.0]),
    ("sub.f64", "f64", [1.0], [0.25], [0.75]),
    ("mul.f32", "f32", [3.0, 2.0**-100, INF], [0.5, 2.0**-49, 0.0], [1.5, TINY, NAN]),
    ("mul.rn.ftz.f32", "f32", [2.0**-100], [2.0**-49], [0.0]),
    ("mul.f64", "f64", [1.5], [1.5], [2.25]),
    ("div.rn.f32", "f32", [1.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.25, INF, NAN]),
    ("div.full.f32", "f32", [6.0], [3.0], [2.0]),
    ("div.approx.ftz.f32", "f32", [TINY], [1.0], [0.0]),
    ("div.rn.f64", "f64", [1.0], [8.0], [0.125]),
    ("min.f32", "f32", [NAN, -0.0, 3.0], [1.0, 0.0, 2.0], [1.0, -0.0, 2.0]),
    ("min.NaN.f32", "f32", [NAN, 1.0], [1.0, 2.0], [NAN, 1.0]),
    ("min.f64", "f64", [NAN, 1.0], [2.0, -1.0], [2.0, -1.0]),
    ("min.ftz.f32", "f32", [TINY], [1.0], [0.0]),
    ("max.f32", "f32", [NAN, -0.0, 3.0], [1.0, 0.0, 2.0], [1.0, 0.0, 3.0]),
    ("max.NaN.f32", "f32", [1.0], [NAN], [NAN]),
    ("max.f64", "f64", [1.0], [NAN], [1.0]),
    ("add.bf16", "bf16", [1.0, 256.0], [2.0, 1.0], [3.0, 256.0]),
    ("add.f16", "f16", [1.0, 2048.0], [0.5, 1.0], [1.5, 2048.0]),
    ("sub.bf16x2", "bf16x2", [(1.0, 4.0)], [(3.0, 1.0)], [(-2.0, 3.0)]),
    ("mul.f16x2", "f16x2", [(3.0, -2.0)], [(0.5, 8.0)], [(1.5, -16.0)]),
    ("mul.bf16", "bf16", [1.5], [2.0], [3.0]),
    ("min.bf16x2", "bf16x2", [(1.0, -4.0)], [(3.0, 1.0)], [(1.0, -4.0)]),
    ("max.f16", "f16", [1.0], [-3.0], [1.0]),
    ("max.NaN.f16x2", "f16x2", [(1.0, 2.0)], [(3.0, 1.0)], [(3.0, 2.0)]),
]


@pytest.mark.parametrize("opcode,kind,a,b,expected", BINARY, ids=[row[0] for row in BINARY])
def test_two_operands(opcode, kind, a, b, expected):
    check(opcode, kind, [kind, kind], [a, b], expected)


def test_a_nan_of_bf16_is_canonical():
    check("max.NaN.bf16", "b16", ["b16", "b16"], [[0x7FC1], [0x3F80]], [0x7FFF])


UNARY = [
    ("neg.f32", "f32", [1.0, 0.0], [-1.0, -0.0]),
    ("neg.ftz.f32", "f32", [TINY], [-0.0]),
    ("neg.f64", "f64", [-3.0], [3.0]),
    ("neg.bf16x2", "bf16x2", [(1.0, -2.0)], [(-1.0, 2.0)]),
    ("abs.f32", "f32", [-1.0, -0.0], [1.0, 0.0]),
    ("abs.f64", "f64", [-3.0], [3.0]),
    ("abs.f16", "f16", [-2.5], [2.5]),
    ("ex2.approx.f32", "f32", [3.0, -1.0, -INF, INF], [8.0, 0.5, 0.0, INF]),
    ("ex2.approx.ftz.f32", "f32", [-130.0, 2.0], [0.0, 4.0]),
    ("ex2.approx.f16x2", "f16x2", [(3.0, -2.0)], [(8.0, 0.25)]),
    ("lg2.approx.f32", "f32", [8.0, 0.25, 0.0, -1.0], [3.0, -2.0, -INF, NAN]),
    ("lg2.approx.ftz.f32", "f32", [TINY], [-INF]),
    ("sin.approx.f32", "f32", [0.0], [0.0]),
    ("cos.approx.f32", "f32", [0.0], [1.0]),
    ("tanh.approx.f32", "f32", [0.0, 20.0], [0.0, 1.0]),
    ("rcp.rn.f32", "f32", [4.0, 0.0], [0.25, INF]),
    ("rcp.approx.ftz.f32", "f32", [2.0**127], [0.0]),
    ("rcp.rn.f64", "f64", [8.0], [0.125]),
    ("sqrt.rn.f32", "f32", [9.0, -1.0], [3.0, NAN]),
    ("sqrt.approx.ftz.f32", "f32", [TINY], [0.0]),
    ("sqrt.rn.f64", "f64", [2.25], [1.5]),
    ("rsqrt.approx.f32", "f32", [16.0, 0.0], [0.25, INF]),
    ("rsqrt.approx.f64", "f64", [0.25], [2.0]),
]


@pytest.mark.parametrize("opcode,kind,a,expected", UNARY, ids=[row[0] for row in UNARY])
def test_one_operand(opcode, kind, a, expected):
    check(opcode, kind, [kind], [a], expected)


@pytest.mark.parametrize(
    "opcode,kind,a,b,c,expected",
    [
        # One rounding: (1 + e)^2 - (1 + 2 e) keeps e^2.
        ("fma.rn.f32", "f32", [1 + EPS], [1 + EPS], [-1 - 2 * EPS], [EPS * EPS]),
        ("fma.rn.ftz.f32", "f32", [2.0**-100], [2.0**-49], [0.0], [0.0]),
        ("fma.rn.f64", "f64", [2.0], [3.0], [4.0], [10.0]),
        ("fma.rn.bf16", "bf16", [2.0], [3.0], [-4.0], [2.0]),
        ("fma.rn.bf16x2", "bf16x2", [(2.0, 1.0)], [(3.0, 1.0)], [(1.0, 0.5)], [(7.0, 1.5)]),
        ("fma.rn.f16", "f16", [2.0], [3.0], [0.5], [6.5]),
        ("fma.rn.f16x2", "f16x2", [(2.0, 1.0)], [(3.0, 1.0)], [(1.0, 0.5)], [(7.0, 1.5)]),
    ],
)
def test_products_and_sums(opcode, kind, a, b, c, expected):
    check(opcode, kind, [kind] * 3, [a, b, c], expected)
