"""Bulk stores, and tensor maps that a kernel makes itself (PTX ISA 9.7.9.27, 9.7.9.28)."""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER
from tests.ptx.machine import Fault, InOut, Module, Out, TensorMap

START = """.reg .pred %p<4>, %done;
.reg .b32 %r<16>;
.reg .b64 %d<8>;
.shared .align 128 .b8 tile[256];
mov.u32 %r0, %tid.x;
shl.b32 %r1, %r0, 2;
mov.u32 %r2, tile;
add.u32 %r2, %r2, %r1;
add.u32 %r3, %r0, 1000;
st.shared.b32 [%r2], %r3;
fence.proxy.async.shared::cta;
bar.sync 0;
setp.eq.u32 %p0, %r0, 0;
@!%p0 bra END;
"""
END = """
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
END:
bar.sync 0;
st.shared.b32 [%r2], 0;
ret;
}
"""
BYTES = f"""{HEADER}
.visible .entry k(.param .u64 out)
{{
{START}
ld.param.u64 %d0, [out];
cp.async.bulk.global.shared::cta.bulk_group [%d0], [tile], 256;
{END}"""


def kinds(faults: list[Fault]) -> set[str]:
    return {fault.kind for fault in faults}


def test_bytes_are_stored():
    out = Out(64, np.uint32)
    assert Module(BYTES).launch("k", (1,), (64,), [out]) == []
    assert out.get().tolist() == list(range(1000, 1064))


@pytest.mark.parametrize(
    "old,new,kind",
    [
        ("cp.async.bulk.wait_group.read 0;", "", "async-overwrite"),
        ("cp.async.bulk.commit_group;", "", "async-overwrite"),
        ("cp.async.bulk.wait_group.read 0;\nEND:\nbar.sync 0;\nst.shared.b32 [%r2], 0;", "END:",
         "async-lost"),
        ("fence.proxy.async.shared::cta;\n", "", "proxy-fence"),
        ("bar.sync 0;\nsetp", "setp", "shared-race"),
        ("[tile], 256", "[tile+8], 256", "misaligned"),
        ("[tile], 256", "[tile+16], 256", "shared-bounds"),
        ("[%d0], [tile]", "[%d0+16], [tile]", "global-bounds"),
    ],
    ids=["wait", "commit", "end", "fence", "barrier", "alignment", "shared", "global"],
)  # fmt: skip
def test_misused_stores_are_reported(old, new, kind):
    assert BYTES.count(old) == 1
    faults = Module(BYTES.replace(old, new)).launch("k", (1,), (64,), [Out(64, np.uint32)])
    assert kind in kinds(faults)


TILE = BYTES.replace(".param .u64 out", ".param .align 64 .b8 map[128]").replace(
    "ld.param.u64 %d0, [out];\ncp.async.bulk.global.shared::cta.bulk_group [%d0], [tile], 256;",
    "mov.b64 %d0, map;\ncvta.param.u64 %d0, %d0;\n"
    "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d0, {16, -2}], [tile];",
)


def test_a_tile_is_stored_where_it_is_inside_the_tensor():
    target = InOut(np.zeros((10, 20), np.uint32), "target")
    faults = Module(TILE).launch(
        "k", (1,), (64,), [TensorMap(target, (20, 10), (80,), (8, 8), 4, 0)]
    )
    assert faults == []
    expected = np.zeros((10, 20), np.uint32)
    expected[:6, 16:] = np.arange(1000, 1064).reshape(8, 8)[2:, :4]
    assert np.array_equal(target.get(), expected)


FIELDS = [
    ("global_address", "b64", "%d0"), ("rank", "b32", "1"), ("box_dim", "b32", "0, 8"),
    ("box_dim", "b32", "1, 8"), ("global_dim", "b32", "0, 20"), ("global_dim", "b32", "1, 10"),
    ("global_stride", "b64", "0, 80"), ("element_stride", "b32", "0, 1"),
    ("element_stride", "b32", "1, 1"), ("elemtype", "b32", "2"), ("interleave_layout", "b32", "0"),
    ("swizzle_mode", "b32", "0"), ("fill_mode", "b32", "0"),
]  # fmt: skip
MADE = f"""{HEADER}
.visible .entry k(.param .u64 out, .param .u64 scratch)
{{
.shared .align 128 .b8 made[128];
.reg .b64 %m<4>;
.reg .pred %one;
.reg .b32 %z<4>;
mov.u32 %z0, %tid.x;
ld.param.u64 %d0, [out];
ld.param.u64 %m0, [scratch];
mov.u32 %z1, made;
mad.lo.u32 %z1, %z0, 4, %z1;
setp.lt.u32 %one, %z0, 32;
@%one st.shared.b32 [%z1], 0;
bar.sync 0;
setp.eq.u32 %one, %z0, 0;
mov.u64 %m1, made;
"""
MADE += "\n".join(
    f"@%one tensormap.replace.tile.{name}.shared::cta.b1024.{kind} [%m1], {values};"
    for name, kind, values in FIELDS
)
MADE += f"""
bar.sync 0;
setp.ge.u32 %one, %z0, 32;
@%one bra MADE;
tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned
[%m0], [%m1], 128;
MADE:
bar.sync 0;
fence.proxy.tensormap::generic.acquire.gpu [%m0], 128;
{START.split("mov.u32 %r0", maxsplit=1)[1].join(["mov.u32 %r0", ""])}
mov.u64 %d0, %m0;
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d0, {{4, 1}}], [tile];
{END}"""
REGISTERS = START.split("mov.u32 %r0", maxsplit=1)[0]
MADE = MADE.replace(".shared .align 128 .b8 made", f"{REGISTERS}.shared .align 128 .b8 made")


def made(text: str) -> tuple[list[Fault], np.ndarray]:
    target = InOut(np.zeros((10, 20), np.uint32), "target")
    scratch = Out(32, np.uint32, "scratch")
    return Module(text).launch("k", (1,), (64,), [target, scratch]), target.get()


def test_a_kernel_makes_its_own_tensor_map():
    faults, found = made(MADE)
    assert faults == []
    expected = np.zeros((10, 20), np.uint32)
    expected[1:9, 4:12] = np.arange(1000, 1064).reshape(8, 8)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "old,new,text",
    [
        ("element_stride.shared::cta.b1024.b32 [%m1], 0, 1", "element_stride.shared::cta.b1024."
         "b32 [%m1], 0, 2", "element strides other than 1"),
        ("[%m1], 2;", "[%m1], 20;", "the element type is not supported"),
        ("box_dim.shared::cta.b1024.b32 [%m1], 1, 8", "box_dim.shared::cta.b1024.b32 [%m1], 1, 0",
         "box dimension 1 is 0"),
        ("rank.shared::cta.b1024.b32 [%m1], 1", "rank.shared::cta.b1024.b32 [%m1], 7", "rank 8"),
        ("[%m1], 0, 80", "[%m1], 7, 80", "dimension 7"),
    ],
    ids=["stride", "type", "box", "rank", "dimension"],
)  # fmt: skip
def test_fields_are_checked(old, new, text):
    assert MADE.count(old) == 1
    faults, _ = made(MADE.replace(old, new))
    assert any(fault.kind == "tensor-map" and text in fault.text for fault in faults)


def test_memory_that_is_no_tensor_map_is_reported():
    faults, _ = made(MADE.replace("mov.u64 %d0, %m0;", "ld.param.u64 %d0, [out];"))
    assert any("this is no tensor map" in fault.text for fault in faults)
