"""cp.async, bulk copies, tensor maps and mbarriers (PTX ISA 9.7.9.25 to .28, 9.7.13.15).

A correct program runs clean and copies right; without one of its lines it is reported.
"""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER
from tests.ptx.machine import Fault, In, Module, Options, Out, TensorMap
from tests.ptx.test_memory import kernel


def kinds(faults: list[Fault]) -> set[str]:
    return {fault.kind for fault in faults}


def without(text: str, line: str) -> str:
    """A program without one of its lines."""
    assert text.count(line) == 1, line
    return text.replace(line, "")


COPY = """.shared .align 16 .b8 cells[1024];
ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
mov.u32 %r0, %tid.x;
mul.wide.u32 %d2, %r0, 16;
add.s64 %d0, %d0, %d2;
add.s64 %d1, %d1, %d2;
shl.b32 %r1, %r0, 4;
mov.u32 %r2, cells;
add.u32 %r3, %r2, %r1;
xor.b32 %r4, %r3, 512;
cp.async.cg.shared.global [%r3], [%d0], 16, 12;
cp.async.commit_group;
cp.async.wait_group 0;
bar.sync 0;
ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r4];
st.global.v4.b32 [%d1], {%r5, %r6, %r7, %r8};"""
PARAMETERS = ".param .u64 a, .param .u64 b"


def run_copy(body: str, options: Options | None = None) -> tuple[list[Fault], np.ndarray]:
    out = Out((64, 4), np.uint32)
    source = In(np.arange(256, dtype=np.uint32).reshape(64, 4))
    module = kernel(PARAMETERS, body)
    return module.launch("k", (1,), (64,), [source, out], options=options), out.get()


def test_a_copy_by_threads_arrives_and_is_padded_with_zeros():
    faults, found = run_copy(COPY)
    assert faults == []
    expected = np.arange(256, dtype=np.uint32).reshape(64, 4)[[*range(32, 64), *range(32)]]
    assert np.array_equal(found[:, :3], expected[:, :3]) and not found[:, 3].any()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_of_every_size(size):
    body = COPY.replace("cp.async.cg", "cp.async.ca").replace("16, 12;", f"{size};")
    body = body.replace("ld.shared.v4", "st.shared.b32 [cells], 1;\nld.shared.v4", 0)
    options = Options(unwritten=False)
    faults, found = run_copy(body, options)
    assert faults == []
    assert np.array_equal(found[:32, : size // 4].ravel(),
                          np.arange(256).reshape(64, 4)[32:, : size // 4].ravel())  # fmt: skip


@pytest.mark.parametrize(
    "line,kind",
    [
        ("cp.async.wait_group 0;", "async-early"),
        ("cp.async.commit_group;", "async-early"),  # what is in no group is not waited for
        ("bar.sync 0;", "shared-race"),
    ],
)
def test_a_copy_without_its_wait_is_reported(line, kind):
    faults, _ = run_copy(without(COPY, line))
    assert kind in kinds(faults)


def test_older_groups_are_waited_for():
    two = COPY.replace(
        "cp.async.wait_group 0;",
        "cp.async.ca.shared.global [%r3+0], [%d0], 16;\ncp.async.commit_group;\n"
        "cp.async.wait_group 1;",
    )
    assert "async-overlap" in kinds(run_copy(two)[0])
    assert run_copy(COPY.replace("cp.async.wait_group 0;", "cp.async.wait_all;"))[0] == []


@pytest.mark.parametrize(
    "change,kind",
    [
        (("16, 12;", "16, 20;"), "operand"),
        (("[%d0], 16", "[%d0+8], 16"), "misaligned"),
        (("[%d0], 16", "[%d0+16], 16"), "global-bounds"),
        (("[%r3], [%d0]", "[%r3+16], [%d0]"), "shared-bounds"),
        (("bar.sync 0;", "ret;"), None),
        (("cp.async.wait_group 0;", "ret;"), "async-lost"),
    ],
)
def test_misused_copies_are_reported(change, kind):
    faults, _ = run_copy(COPY.replace(*change))
    assert kind is None or kind in kinds(faults)
    assert kind is not None or faults == []


# One thread starts a bulk copy; the others wait for the phase of its mbarrier.
BULK = f"""{HEADER}
.visible .entry k({PARAMETERS})
{{
.reg .pred %p<4>, %done;
.reg .b32 %r<16>;
.reg .b64 %d<8>;
.shared .align 128 .b8 tile[256];
.shared .align 8 .b8 full[8];
ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
mov.u32 %r0, %tid.x;
mul.wide.u32 %d2, %r0, 4;
add.s64 %d1, %d1, %d2;
shl.b32 %r1, %r0, 2;
mov.u32 %r2, tile;
add.u32 %r2, %r2, %r1;
setp.eq.u32 %p0, %r0, 0;
@%p0 mbarrier.init.shared::cta.b64 [full], 1;
@%p0 fence.mbarrier_init.release.cluster;
bar.sync 0;
@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 256;
@%p0 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [tile], [%d0], 256, [full];
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %done, [full], 0;
@!%done bra WAIT;
ld.shared.b32 %r3, [%r2];
st.global.b32 [%d1], %r3;
bar.sync 0;
@%p0 mbarrier.inval.shared::cta.b64 [full];
ret;
}}
"""


def run_bulk(text: str, options: Options | None = None) -> tuple[list[Fault], np.ndarray]:
    out = Out(64, np.uint32)
    source = In(np.arange(64, dtype=np.uint32))
    return Module(text).launch("k", (1,), (64,), [source, out], options=options), out.get()


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_bulk_copy_arrives(seed):
    faults, found = run_bulk(BULK, Options(seed=seed, slice=5 * seed))
    assert faults == [] and found.tolist() == list(range(64))
    test_wait = BULK.replace("mbarrier.try_wait", "mbarrier.test_wait")
    assert run_bulk(test_wait, Options(seed=seed))[0] == []


@pytest.mark.parametrize(
    "old,new,kind",
    [
        ("@%p0 fence.mbarrier_init.release.cluster;", "", "init-fence"),
        ("@!%done bra WAIT;", "", None),  # try_wait itself waits here
        ("mbarrier.try_wait.parity.shared::cta.b64 %done, [full], 0;",
         "setp.eq.u32 %done, 0, 0;", "async-early"),
        ("b64 _, [full], 256;", "b64 _, [full], 128;", "deadlock"),
        ("b64 _, [full], 256;", "b64 _, [full], 512;", "deadlock"),
        ("b64 [full], 1;", "b64 [full], 2;", "deadlock"),
        ("b64 [full], 1;", "b64 [full], 0;", "mbarrier"),
        ("@%p0 mbarrier.init.shared::cta.b64 [full], 1;", "", "mbarrier"),
        ("[tile], [%d0], 256", "[tile+8], [%d0], 256", "misaligned"),
        ("[tile], [%d0], 256", "[tile], [%d0], 264", "misaligned"),
        ("[tile], [%d0], 256", "[tile], [%d0+16], 256", "global-bounds"),
        ("[full], 0;\n@!%done", "[full], 1;\n@!%done", "shared-race"),
    ],
)  # fmt: skip
def test_misused_bulk_copies_are_reported(old, new, kind):
    assert BULK.count(old) == 1
    faults, _ = run_bulk(BULK.replace(old, new))
    assert faults == [] if kind is None else kind in kinds(faults)


def test_an_mbarrier_is_made_known_by_either_fence():
    other = BULK.replace("fence.mbarrier_init.release.cluster", "fence.proxy.async.shared::cta")
    assert run_bulk(other)[0] == []
    assert run_bulk(without(BULK, "@%p0 fence.mbarrier_init.release.cluster;"),
                    Options(proxies=False))[0] == []  # fmt: skip


# A ring of one stage: a producer warp refills what a consumer warp has read.
RING = f"""{HEADER}
.visible .entry k({PARAMETERS})
{{
.reg .pred %p<8>, %done;
.reg .b32 %r<16>;
.reg .b64 %d<8>;
.shared .align 128 .b8 tile[128];
.shared .align 8 .b8 full[8];
.shared .align 8 .b8 empty[8];
ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
mov.u32 %r0, %tid.x;
and.b32 %r1, %r0, 31;
setp.eq.u32 %p0, %r0, 0;
setp.lt.u32 %p1, %r0, 32;
setp.eq.u32 %p2, %r1, 0;
@%p0 mbarrier.init.shared::cta.b64 [full], 1;
@%p0 mbarrier.init.shared::cta.b64 [empty], 1;
@%p0 fence.proxy.async;
bar.sync 0;
mov.u32 %r5, 0;
@!%p1 bra CONSUME;
@!%p0 bra END;
PRODUCE:
and.b32 %r6, %r5, 1;
xor.b32 %r7, %r6, 1;
FREE:
mbarrier.try_wait.parity.shared::cta.b64 %done, [empty], %r7;
@!%done bra FREE;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 128;
cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [tile], [%d0], 128, [full];
add.s64 %d0, %d0, 128;
add.u32 %r5, %r5, 1;
setp.lt.u32 %p3, %r5, 4;
@%p3 bra PRODUCE;
bra.uni END;
CONSUME:
shl.b32 %r8, %r1, 2;
mov.u32 %r9, tile;
add.u32 %r9, %r9, %r8;
xor.b32 %r8, %r8, 4;
cvt.u64.u32 %d2, %r8;
add.s64 %d1, %d1, %d2;
NEXT:
and.b32 %r6, %r5, 1;
FULL:
mbarrier.try_wait.parity.shared::cta.b64 %done, [full], %r6;
@!%done bra FULL;
ld.shared.b32 %r10, [%r9];
bar.warp.sync -1;
@%p2 mbarrier.arrive.shared::cta.b64 _, [empty];
st.global.b32 [%d1], %r10;
add.s64 %d1, %d1, 128;
add.u32 %r5, %r5, 1;
setp.lt.u32 %p3, %r5, 4;
@%p3 bra NEXT;
END:
ret;
}}
"""


def run_ring(text: str, options: Options | None = None) -> tuple[list[Fault], np.ndarray]:
    out = Out(128, np.uint32)
    source = In(np.arange(128, dtype=np.uint32))
    return Module(text).launch("k", (1,), (64,), [source, out], options=options), out.get()


@pytest.mark.parametrize("seed", range(4))
def test_a_ring_with_one_lane_arrivals(seed):
    faults, found = run_ring(RING, Options(seed=seed, slice=3 * seed))
    assert faults == []
    assert found.tolist() == [n ^ 1 for n in range(128)]


@pytest.mark.parametrize(
    "old,new,kind",
    [
        # One lane arrives for all: what the others have read is not handed on with it.
        ("bar.warp.sync -1;", "", "shared-race"),
        ("@!%done bra FREE;", "", None),
        ("mbarrier.try_wait.parity.shared::cta.b64 %done, [empty], %r7;",
         "setp.eq.u32 %done, 0, 0;", "any"),
        ("@%p2 mbarrier.arrive.shared::cta.b64 _, [empty];", "", "deadlock"),
        ("@%p2 mbarrier.arrive.shared::cta.b64 _, [empty];",
         "mbarrier.arrive.shared::cta.b64 _, [empty];", "any"),
    ],
    ids=["no-syncwarp", "loop", "no-wait", "no-arrive", "all-arrive"],
)  # fmt: skip
def test_a_broken_ring_is_reported(old, new, kind):
    assert RING.count(old) == 1
    faults, _ = run_ring(RING.replace(old, new))
    assert (faults != []) == (kind is not None)
    assert kind in (None, "any") or kind in kinds(faults)


def test_a_wait_by_one_lane_tells_only_that_lane():
    one = RING.replace("FULL:\nmbarrier.try_wait", "@!%p2 bra READ;\nFULL:\nmbarrier.try_wait")
    one = one.replace("@!%done bra FULL;\n", "@!%done bra FULL;\nREAD:\n{}\n")
    assert run_ring(one.replace("{}", "bar.warp.sync -1;"))[0] == []
    assert "shared-race" in kinds(run_ring(one.replace("{}", ""))[0])


def test_copies_by_threads_arrive_at_an_mbarrier():
    body = f"""{COPY.split("cp.async.cg", maxsplit=1)[0]}
.shared .align 8 .b8 full[8];
.reg .pred %done;
setp.eq.u32 %p0, %r0, 0;
@%p0 mbarrier.init.shared.b64 [full], 64;
bar.sync 0;
cp.async.ca.shared.global [%r3], [%d0], 16;
cp.async.mbarrier.arrive.noinc.shared.b64 [full];
WAIT:
mbarrier.try_wait.parity.shared.b64 %done, [full], 0;
@!%done bra WAIT;
{COPY.split("bar.sync 0;")[1]}"""
    faults, found = run_copy(body)
    assert faults == []
    assert np.array_equal(found[:32], np.arange(128, 256).reshape(32, 4))
    counted = body.replace(".noinc", "").replace("[full], 64;", "[full], 1;")
    arrival = "bar.sync 0;\n@%p0 mbarrier.arrive.shared.b64 %d3, [full];\nWAIT:"
    counted = counted.replace("WAIT:", arrival)
    assert run_copy(counted)[0] == []


CHANGES = {
    ".param .u64 a,": ".param .align 64 .b8 a[128], .param .u32 x, .param .u32 y,",
    "ld.param.u64 %d0, [a];": "mov.b64 %d0, a;\ncvta.param.u64 %d0, %d0;",
    "setp.eq.u32 %p0": "ld.param.u32 %r4, [x];\nld.param.u32 %r5, [y];\nsetp.eq.u32 %p0",
    "cp.async.bulk.shared": "cp.async.bulk.tensor.2d.shared",
    "[tile], [%d0], 256, [full]": "[tile], [%d0, {%r4, %r5}], [full]",
}
TILE = BULK
for _old, _new in CHANGES.items():
    TILE = TILE.replace(_old, _new)


def tile_of(x: int, y: int, swizzle: int) -> tuple[list[Fault], np.ndarray, np.ndarray]:
    """A box of 8 columns and 8 rows from a tensor of 20 columns and 10 rows."""
    matrix = np.arange(1, 201, dtype=np.uint32).reshape(10, 20)
    out = Out(64, np.uint32)
    box = TensorMap(In(matrix), (20, 10), (80,), (8, 8), 4, swizzle)
    faults = Module(TILE).launch("k", (1,), (64,), [box, x, y, out])
    padded = np.zeros((40, 60), np.uint32)
    padded[15:25, 20:40] = matrix
    return faults, out.get().reshape(8, 8), padded[15 + y :, 20 + x :][:8, :8]


@pytest.mark.parametrize("x,y", [(0, 0), (5, 1), (16, 6), (-3, -2), (19, 9), (30, 0)])
def test_a_tile_arrives_with_zeros_outside_the_tensor(x, y):
    faults, found, expected = tile_of(x, y, 0)
    assert faults == [] and np.array_equal(found, expected)


def test_a_swizzled_tile_moves_the_pieces_of_its_rows():
    # 32 bytes a row in a swizzle of 32: bit 4 of the address is turned by bit 7, every 4 rows.
    faults, found, expected = tile_of(1, 1, 1)
    assert faults == []
    turned = expected.copy()
    turned[4:] = np.concatenate([expected[4:, 4:], expected[4:, :4]], axis=1)
    assert np.array_equal(found, turned)


@pytest.mark.parametrize(
    "map_arguments,text",
    [
        (((20, 10), (72,), (8, 8), 4, 0), "stride 1 is no multiple of 16 bytes"),
        (((20, 10), (80,), (3, 8), 4, 0), "a row of the box has 12 bytes"),
        (((20, 10), (80,), (16, 4), 4, 1), "a row of 64 bytes in a swizzle of 32"),
        (((200,), (), (64,), 4, 0), "2 coordinates for a tensor of rank 1"),
    ],
    ids=["stride", "row", "swizzle", "rank"],
)
def test_misused_tensor_maps_are_reported(map_arguments, text):
    source = In(np.zeros((10, 20), np.uint32))
    faults = Module(TILE).launch(
        "k", (1,), (64,), [TensorMap(source, *map_arguments), 0, 0, Out(64, np.uint32)]
    )
    assert "tensor-map" in kinds(faults) and any(text in fault.text for fault in faults)
