"""Barriers, fences, setmaxnreg, and the races that they prevent (PTX ISA 9.7.13, 9.7.19).

Every rule stands twice: the program that keeps it runs clean, and without one line it is reported.
"""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER
from tests.ptx.machine import Fault, Module, Options, Out
from tests.ptx.test_memory import kernel

START = """.shared .align 16 .b8 cells[1024];
ld.param.u64 %d0, [a];
mov.u32 %r0, %tid.x;
shl.b32 %r1, %r0, 2;
mov.u32 %r2, cells;
add.u32 %r3, %r2, %r1;
mul.wide.u32 %d1, %r0, 4;
add.s64 %d1, %d0, %d1;
mov.u32 %r10, %ntid.x;
sub.u32 %r11, %r10, %r0;
add.s32 %r11, %r11, -1;
shl.b32 %r12, %r11, 2;
add.u32 %r13, %r2, %r12;
"""  # %r3: the cell of this thread; %r13: of the one that mirrors it
REVERSE = """st.shared.b32 [%r3], %r0;
{barrier}
ld.shared.b32 %r4, [%r13];
st.global.b32 [%d1], %r4;"""


def launch(
    body: str, threads: int, options: Options | None = None
) -> tuple[list[Fault], np.ndarray]:
    out = Out(threads, np.uint32)
    module = kernel(".param .u64 a", START + body)
    faults = module.launch("k", (1,), (threads,), [out], options=options)
    return faults, out.get()


def kinds(faults: list[Fault]) -> set[str]:
    return {fault.kind for fault in faults}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "barrier",
    ["bar.sync 0;", "barrier.sync.aligned 3, 128;", "bar.arrive 1, 256;\nbar.sync 0;"],
)
def test_a_barrier_orders_the_warps_of_a_block(barrier, seed):
    options = Options(seed=seed, slice=3 * seed)
    faults, found = launch(REVERSE.format(barrier=barrier), 128, options)
    assert faults == []
    assert found.tolist() == list(range(127, -1, -1))


def test_a_read_without_a_barrier_is_a_race():
    faults, _ = launch(REVERSE.format(barrier=""), 128)
    assert kinds(faults) == {"shared-race", "shared-unwritten"}
    assert any("which warp 1 may still write" in fault.text for fault in faults)


def test_an_overwrite_of_what_others_read_is_a_race():
    body = REVERSE.format(barrier="bar.sync 0;") + "\n{}\nst.shared.b32 [%r3], %r11;"
    assert launch(body.format("bar.sync 0;"), 64)[0] == []
    faults, _ = launch(body.format(""), 64)
    assert kinds(faults) == {"shared-race"}
    assert all("may still" in fault.text for fault in faults)


def test_two_writes_are_a_race_unless_they_are_the_same():
    body = "st.shared.b32 [cells], {};"
    faults, _ = launch(body.format("%r0"), 64)
    assert "shared-race" in kinds(faults)
    assert launch(body.format("7"), 64)[0] == []


def test_producers_arrive_and_consumers_wait():
    body = """setp.lt.u32 %p0, %r0, 32;
@%p0 st.shared.b32 [%r3], %r0;
{}
@!%p0 bar.sync 1, 64;
@!%p0 ld.shared.b32 %r4, [%r3+-128];
@!%p0 st.global.b32 [%d1], %r4;"""
    faults, found = launch(body.format("@%p0 bar.arrive 1, 64;"), 64)
    assert faults == [] and found[32:].tolist() == list(range(32))
    faults, _ = launch(body.format(""), 64)
    assert kinds(faults) == {"deadlock"} and "waits at barrier 1" in faults[0].text


def test_a_warp_barrier_orders_the_lanes_of_a_warp():
    faults, found = launch(REVERSE.format(barrier="bar.warp.sync -1;"), 32)
    assert faults == [] and found.tolist() == list(range(31, -1, -1))
    faults, _ = launch(REVERSE.format(barrier=""), 32)
    assert kinds(faults) == {"warp-race"} and "written by lane 31" in faults[0].text
    quiet, _ = launch(REVERSE.format(barrier=""), 32, Options(lanes=False))
    assert quiet == []


def test_a_lane_overwrites_what_another_reads():
    body = REVERSE.format(barrier="bar.warp.sync -1;") + "\n{}\nst.shared.b32 [%r3], %r11;"
    assert launch(body.format("bar.warp.sync -1;"), 32)[0] == []
    faults, _ = launch(body.format(""), 32)
    assert kinds(faults) == {"warp-race"} and "may still read" in faults[0].text


@pytest.mark.parametrize(
    "values,kind",
    [((0x3F800000, 0x3F800001), "replica-rounding"), ((3, 4), "warp-race"),
     ((0x3F800000, 0x3F900000), "warp-race"), ((0, 0x2EDBE6FF), "replica-rounding"),
     ((0, 0x80000000), "replica-rounding"), ((0, 4), "warp-race"), ((0, 0x3A83126F), "warp-race"),
     ((0x3AFC9578, 0x3AFC9436), "replica-rounding"), ((0x3AFC9578, 0x3AFCA578), "warp-race")],
    ids=["rounding", "integers", "values", "cancelled", "zeros", "zero and an integer", "zero",
         "rounding of the terms", "more than that"],
)  # fmt: skip
def test_replicas_that_differ_in_their_last_bits(values, kind):
    body = f"""and.b32 %r4, %r0, 1;
setp.eq.u32 %p0, %r4, 0;
selp.b32 %r5, {values[0]}, {values[1]}, %p0;
st.shared.b32 [cells], %r5;"""
    faults, _ = launch(body, 32)
    assert kinds(faults) == {kind}


def test_atomics_are_ordered_with_everything():
    body = """st.shared.b32 [%r3], 0;
bar.sync 0;
red.shared.add.u32 [cells], 1;
bar.sync 0;
ld.shared.b32 %r4, [cells];
st.global.b32 [%d1], %r4;"""
    faults, found = launch(body, 96)
    assert faults == [] and (found == 96).all()


@pytest.mark.parametrize(
    "body,kind,text",
    [
        ("bar.sync 16;", "barrier", "barrier 16 of 16"),
        ("bar.sync 1, 48;", "barrier", "48 threads"),
        ("setp.lt.u32 %p0, %r0, 32;\n@%p0 bar.sync 1, 64;\n@!%p0 bar.sync 1, 96;", "barrier",
         "others said"),
        ("setp.lt.u32 %p0, %r0, 32;\n@%p0 bar.sync 2;\n@!%p0 bar.sync 3;", "deadlock", "barrier"),
    ],
    ids=["number", "threads", "mismatch", "different"],
)  # fmt: skip
def test_misused_barriers_are_reported(body, kind, text):
    faults, _ = launch(body, 64)
    assert kind in kinds(faults)
    assert any(text in fault.text for fault in faults)


def test_a_program_that_does_not_end_is_stopped():
    options = Options(step_limit=10)
    faults, _ = launch("AGAIN:\nbra.uni AGAIN;", 32, options)
    assert kinds(faults) == {"step-limit"}


def test_a_warp_that_polls_memory_lets_the_others_go_on():
    body = """setp.lt.u32 %p0, %r0, 32;
st.shared.b32 [%r3], 0;
bar.sync 0;
@!%p0 bra SET;
AGAIN:
atom.shared.or.b32 %r4, [cells], 0;
setp.eq.u32 %p1, %r4, 0;
@%p1 bra AGAIN;
bra.uni END;
SET:
atom.shared.exch.b32 %r4, [cells], 1;
END:"""
    faults, _ = launch(body, 64)
    assert faults == []


def registers(body: str, directive: str = ".maxntid 256") -> list[Fault]:
    module = Module(
        f"{HEADER}.visible .entry k() {directive}\n{{\n.reg .pred %p<4>;\n.reg .b32 %r<4>;\n"
        f"mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 128;\n{body}\nret;\n}}\n"
    )
    return module.launch("k", (1,), (256,))


LOWER, RAISE = "setmaxnreg.dec.sync.aligned.u32 {};", "setmaxnreg.inc.sync.aligned.u32 {};"


def halves(lower: int, upper: int) -> str:
    """The first warpgroup gives registers back, the second takes more."""
    return f"@%p0 {LOWER.format(lower)}\n@!%p0 {RAISE.format(upper)}"


def test_registers_come_from_the_pool_of_the_block():
    assert registers(halves(24, 232), ".maxntid 256 .maxnreg 128") == []
    faults = registers(halves(24, 240), ".maxntid 256 .maxnreg 128")
    assert kinds(faults) == {"deadlock"} and "waits for 240 registers" in faults[0].text
    # Without .maxnreg: 65536 registers for the declared threads and blocks, here 128 each.
    assert registers(halves(24, 232), ".maxntid 256 .minnctapersm 2") == []
    assert kinds(registers(halves(32, 232), ".maxntid 256 .minnctapersm 2")) == {"deadlock"}


@pytest.mark.parametrize(
    "body,directive,text",
    [
        (LOWER.format(20), ".maxnreg 128", "20 registers"),
        (LOWER.format(44), ".maxnreg 128", "44 registers"),
        (LOWER.format(160), ".maxnreg 128", "lowered to 160 registers of 128"),
        (RAISE.format(64), ".maxnreg 128", "raised to 64 registers of 128"),
        (LOWER.format(40), "", "declares neither"),
        ("setp.lt.u32 %p1, %r0, 64;\n@%p1 " + LOWER.format(40), ".maxnreg 128",
         "different setmaxnreg"),
    ],
    ids=["few", "step", "lowered", "raised", "unknown", "part"],
)  # fmt: skip
def test_misused_registers_are_reported(body, directive, text):
    faults = registers(body, directive)
    assert kinds(faults) == {"registers"}
    assert any(text in fault.text for fault in faults)


def test_results_and_faults_do_not_depend_on_the_number_of_cores():
    body = """mov.u32 %r5, %ctaid.x;
mad.lo.u32 %r6, %r5, %r10, %r0;
st.shared.b32 [%r3], %r6;
ld.shared.b32 %r4, [%r13];
mul.wide.u32 %d1, %r6, 4;
add.s64 %d1, %d0, %d1;
st.global.b32 [%d1], %r4;"""
    module = kernel(".param .u64 a", START + body)
    seen = []
    for threads in (1, 2, 7):
        out = Out(40 * 64, np.uint32)
        faults = module.launch("k", (40,), (64,), [out], options=Options(threads=threads))
        seen.append(([(f.kind, f.text, f.count) for f in faults], out.get().tolist()))
    assert seen[0] == seen[1] == seen[2]
    assert {kind for kind, _, _ in seen[0][0]} == {"shared-race", "shared-unwritten"}
    assert all("block (0, 0, 0)" in text for _, text, _ in seen[0][0])
    assert all(count % 40 == 0 for _, _, count in seen[0][0])
