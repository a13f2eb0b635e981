"""Exchange between lanes and divergence, against values by hand (PTX ISA 9.7.9, 9.7.13)."""

import numpy as np
import pytest

from tests.ptx.lanes import run
from tests.ptx.machine import Out
from tests.ptx.test_memory import kernel

LANE = list(range(32))


@pytest.mark.parametrize(
    "mode,by,clamp,value,inside",
    [
        ("up", 3, 0, [max(n - 3, 0) if n >= 3 else n for n in LANE], [n >= 3 for n in LANE]),
        ("down", 3, 31, [n + 3 if n + 3 < 32 else n for n in LANE], [n + 3 < 32 for n in LANE]),
        ("bfly", 5, 31, [n ^ 5 for n in LANE], [True] * 32),
        ("idx", 7, 31, [7] * 32, [True] * 32),
        # Segments of eight lanes: the mask 24 keeps the upper bits of a lane.
        ("idx", 2, 31 | 24 << 8, [n // 8 * 8 + 2 for n in LANE], [True] * 32),
        ("bfly", 8, 31 | 24 << 8, [n ^ 8 for n in LANE], [n ^ 8 <= n | 7 for n in LANE]),
    ],
)
def test_shuffles(mode, by, clamp, value, inside):
    body = f"shfl.sync.{mode}.b32 %d|%p, %lane, {by}, {clamp}, -1;"
    found = run(body, {"d": "u32", "p": "pred"}, {})
    expected = [v if i else n for v, i, n in zip(value, inside, LANE, strict=True)]
    assert found["d"].tolist() == expected
    assert found["p"].tolist() == [int(i) for i in inside]


@pytest.mark.parametrize(
    "operation,values,expected",
    [
        ("add.u32", [1, 2, 3], 6 + 29 * 3),
        ("min.s32", [5, -7, 3], -7),
        ("max.u32", [5, -7, 3], -7),
        ("and.b32", [0b111, 0b110], 0b110),
        ("or.b32", [1, 4, 0], 5),
        ("xor.b32", [1, 4, 0], 5),
    ],
)
def test_reductions_over_a_warp(operation, values, expected):
    found = run(f"redux.sync.{operation} %d, %a, -1;", {"d": "s32"}, {"a": ("s32", values)})
    assert (found["d"] == expected).all()


def test_votes():
    body = """.reg .pred %q;
vote.sync.any.pred %p, %a, -1;
vote.sync.all.pred %q, !%a, -1;
selp.u32 %e, 1, 0, %q;
vote.sync.uni.pred %q, %a, -1;
selp.u32 %f, 1, 0, %q;
vote.sync.ballot.b32 %d, %a, -1;"""
    results = {"p": "pred", "e": "u32", "f": "u32", "d": "u32"}
    found = run(body, results, {"a": ("pred", [1, 0, 1, 0])})
    assert found["p"].all() and not found["e"].any() and not found["f"].any()
    assert (found["d"] == 5).all()
    none = run(body, results, {"a": ("pred", [0])})
    assert not none["p"].any() and none["e"].all() and none["f"].all()


def test_lanes_with_the_same_value():
    body = "match.any.sync.b32 %d, %a, -1;\nmatch.all.sync.b32 %e|%p, %a, -1;"
    results = {"d": "u32", "e": "u32", "p": "pred"}
    found = run(body, results, {"a": ("u32", [4, 9, 4, 7])})
    assert found["d"][:3].tolist() == [5, 2, 5] and found["d"][3] == 2**32 - 8
    assert not found["e"].any() and not found["p"].any()
    same = run(body, results, {"a": ("u32", [4])})
    assert (same["e"] == 2**32 - 1).all() and same["p"].all()


def test_one_lane_is_elected_and_the_active_ones_known():
    body = """elect.sync %d|%p, -1;
activemask.b32 %e;
@%p activemask.b32 %e;"""
    found = run(body, {"d": "u32", "p": "pred", "e": "u32"}, {})
    assert not found["d"].any() and found["p"].tolist() == [1, *[0] * 31]
    assert found["e"].tolist() == [1, *[2**32 - 1] * 31]


def test_lanes_part_and_meet_again():
    # Odd lanes loop lane times, even ones once; the sum over the warp comes after they met.
    body = """.reg .pred %odd, %more;
.reg .b32 %left, %bit;
mov.u32 %d, 0;
and.b32 %bit, %lane, 1;
setp.eq.u32 %odd, %bit, 1;
@!%odd bra EVEN;
mov.u32 %left, %lane;
AGAIN:
add.u32 %d, %d, 1;
add.s32 %left, %left, -1;
setp.gt.s32 %more, %left, 0;
@%more bra AGAIN;
bra.uni MEET;
EVEN:
mov.u32 %d, 100;
MEET:
redux.sync.add.u32 %e, %d, -1;"""
    found = run(body, {"d": "u32", "e": "u32"}, {})
    assert found["d"].tolist() == [n if n % 2 else 100 for n in LANE]
    assert (found["e"] == 16 * 100 + sum(range(1, 32, 2))).all()


def test_a_shuffle_waits_for_the_lanes_of_its_mask():
    # The lower half comes later, from behind; both halves shuffle among themselves.
    body = """setp.lt.u32 %p0, %r0, 16;
@%p0 bra LOW;
shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff0000;
bra.uni END;
LOW:
shfl.sync.bfly.b32 %r1, %r0, 2, 31, 0x0000ffff;
END:
mul.wide.u32 %d1, %r0, 4;
add.s64 %d0, %d0, %d1;
st.global.b32 [%d0], %r1;"""
    out = Out(32, np.uint32)
    start = "ld.param.u64 %d0, [a];\nmov.u32 %r0, %tid.x;\n"
    assert kernel(".param .u64 a", start + body).launch("k", (1,), (32,), [out]) == []
    assert out.get().tolist() == [n ^ 2 if n < 16 else n ^ 1 for n in LANE]


# The upper half of the warp waits at a barrier of its own for lanes that are elsewhere.
APART = """@!%p0 bra ELSEWHERE;
{}
bra.uni END;
ELSEWHERE:
bar.warp.sync -1;
END:"""
MEMBERS = "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffff0000;"
CONVERGENCE = {
    "shfl": (APART.format("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;"), "which do not come"),
    "warp": (APART.format("bar.warp.sync -1;"), "which do not come"),
    "block": (APART.format("bar.sync 0;"), "which do not come"),
    "members": (APART.format(MEMBERS), "are not in their membermask ffff0000"),
    "source": ("@%p0 shfl.sync.idx.b32 %r1, %r0, 20, 31, 0x0000ffff;", "lane 0 reads lane 20"),
}


@pytest.mark.parametrize("case", CONVERGENCE)
def test_lanes_that_do_not_come_together_are_reported(case):
    body, text = CONVERGENCE[case]
    module = kernel("", f"mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 16;\n{body}")
    faults = module.launch("k", (1,), (32,))
    assert {fault.kind for fault in faults} == {"shuffle" if case == "source" else "convergence"}
    assert any(text in fault.text for fault in faults)


def test_lanes_that_have_ended_are_not_waited_for():
    body = """mov.u32 %r0, %tid.x;
setp.ge.u32 %p0, %r0, 16;
@%p0 exit;
bar.warp.sync -1;
bar.sync 0;
redux.sync.add.u32 %r1, %r0, -1;
ld.param.u64 %d0, [a];
st.global.b32 [%d0], %r1;"""
    out = Out(1, np.uint32)
    assert kernel(".param .u64 a", body).launch("k", (1,), (64,), [out]) == []
    assert out.get()[0] == sum(range(16))
