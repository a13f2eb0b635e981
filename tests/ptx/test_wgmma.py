"""wgmma against numpy products, and its fences and waits (PTX ISA 9.7.15)."""

import numpy as np
import pytest

from tests.ptx.lanes import HEADER
from tests.ptx.machine import Fault, In, Module, Out
from tests.ptx.test_matrix import bf16_bits

N = 16
ACCUMULATORS = ", ".join(f"%o{i}" for i in range(N // 2))


def descriptor(leading: int, stride: int, swizzle: int) -> int:
    """The upper part of a descriptor, without the address; distances in bytes."""
    return leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62


def program(a: str, b: str, product: str, after: str = "") -> str:
    """A warpgroup copies 2 x 4096 bytes to shared memory, multiplies and stores 8 registers."""
    return f"""{HEADER}
.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 po)
{{
.reg .pred %p<4>;
.reg .b32 %r<16>;
.reg .b32 %o<8>, %x<4>;
.reg .b64 %d<8>;
.shared .align 1024 .b8 ta[4096];
.shared .align 1024 .b8 tb[4096];
ld.param.u64 %d0, [pa];
ld.param.u64 %d1, [pb];
ld.param.u64 %d2, [po];
mov.u32 %r0, %tid.x;
shl.b32 %r1, %r0, 4;
cvt.u64.u32 %d3, %r1;
add.s64 %d0, %d0, %d3;
add.s64 %d1, %d1, %d3;
mov.u32 %r2, ta;
mov.u32 %r3, tb;
add.u32 %r4, %r2, %r1;
add.u32 %r5, %r3, %r1;
{
        "".join(
            f'''ld.global.v4.b32 {{%r6, %r7, %r8, %r9}}, [%d{i}+{at}];
st.shared.v4.b32 [%r{4 + i}+{at}], {{%r6, %r7, %r8, %r9}};
'''
            for i in (0, 1)
            for at in (0, 2048)
        )
    }
fence.proxy.async.shared::cta;
bar.sync 0;
shr.u32 %r2, %r2, 4;
shr.u32 %r3, %r3, 4;
cvt.u64.u32 %d4, %r2;
cvt.u64.u32 %d5, %r3;
or.b64 %d4, %d4, {a};
or.b64 %d5, %d5, {b};
{"".join(f"mov.b32 %o{i}, 0f3F800000;" for i in range(8))}
mov.b32 %x0, 0f3F800000;
add.f32 %x0, %x0, %x0;
add.f32 %o0, %o0, 0f00000000;
wgmma.fence.sync.aligned;
{product}
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
{after}
shl.b32 %r1, %r0, 5;
cvt.u64.u32 %d3, %r1;
add.s64 %d2, %d2, %d3;
st.global.v4.b32 [%d2], {{%o0, %o1, %o2, %o3}};
st.global.v4.b32 [%d2+16], {{%o4, %o5, %o6, %o7}};
ret;
}}
"""


def run(text: str, a: np.ndarray, b: np.ndarray) -> tuple[list[Fault], np.ndarray]:
    """The faults and the product, gathered from the registers of the lanes."""
    bytes_of = [np.zeros(4096, np.uint8) for _ in range(2)]
    for to, values in zip(bytes_of, (a, b), strict=True):
        to[: values.nbytes] = np.ascontiguousarray(values).view(np.uint8).ravel()
    out = Out((4, 32, 8), np.float32)
    faults = Module(text).launch("k", (1,), (128,), [In(bytes_of[0]), In(bytes_of[1]), out])
    registers, product = out.get(), np.empty((64, N), np.float32)
    for warp in range(4):
        for lane in range(32):
            for r in range(8):
                row = warp * 16 + lane // 4 + r // 2 % 2 * 8
                product[row, r // 4 * 8 + lane % 4 * 2 + r % 2] = registers[warp, lane, r]
    return faults, product


def matrices(depth: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(-8, 8, (64, depth)), rng.integers(-8, 8, (depth, N))


def core(rows: np.ndarray) -> np.ndarray:
    """K-major without swizzle: blocks of 8 rows x 16 bytes, K first, then rows."""
    per = 16 // rows.itemsize
    return rows.reshape(-1, 8, rows.shape[1] // per, per).transpose(0, 2, 1, 3)


def swizzled(rows: np.ndarray, pattern: int) -> np.ndarray:
    """Rows of 128, 64 or 32 bytes, their pieces of 16 bytes moved as the copy engine does."""
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(-1, 16)
    turned = np.empty_like(flat)
    for piece in range(len(flat)):
        at = piece * 16
        turned[(at ^ (at >> 7 & pattern - 1) << 4) // 16] = flat[piece]
    return turned


def product(shape: str, a: str = "%d4", tail: str = "1, 1, 1, 0, 0") -> str:
    return f"wgmma.mma_async.sync.aligned.{shape} {{{ACCUMULATORS}}}, {a}, %d5, {tail};"


KINDS = {
    "bf16": (16, bf16_bits),
    "f16": (16, lambda x: x.astype(np.float16).view(np.uint16)),
    "tf32": (8, lambda x: x.astype(np.float32).view(np.uint32)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_without_swizzle(kind):
    depth, encode = KINDS[kind]
    a, b = matrices(depth)
    plain = str(descriptor(128, 256, 0))
    tail = "1, 1, 1" if kind == "tf32" else "1, 1, 1, 0, 0"
    text = program(plain, plain, product(f"m64n{N}k{depth}.f32.{kind}.{kind}", tail=tail))
    faults, found = run(text, core(encode(a)), core(encode(b.T)))
    assert faults == []
    expected = (a @ b + 1).astype(np.float32)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode,width", [(1, 128), (2, 64), (3, 32)])
def test_a_product_from_swizzled_rows(mode, width):
    if width == 128:  # 64 rows of 128 bytes do not fit: A lies without swizzle
        a_layout, a_descriptor = core, descriptor(128, 256, 0)
    else:
        a_layout, a_descriptor = None, descriptor(16, 8 * width, mode)
    a, b = matrices(16)
    wide = np.zeros((64, width // 2), np.uint16)
    wide[:, :16] = bf16_bits(a)
    tall = np.zeros((N, width // 2), np.uint16)
    tall[:, :16] = bf16_bits(b.T)
    pattern = {1: 8, 2: 4, 3: 2}[mode]
    text = program(str(a_descriptor), str(descriptor(16, 8 * width, mode)),
                   product(f"m64n{N}k16.f32.bf16.bf16"))  # fmt: skip
    left = a_layout(bf16_bits(a)) if a_layout else swizzled(wide, pattern)
    faults, found = run(text, left, swizzled(tall, pattern))
    assert faults == []
    assert np.array_equal(found, a @ b + 1)


def test_a_product_with_both_operands_transposed():
    # MN-major, 128-byte swizzle for A: a row of memory is one k, 64 elements of M; 32 bytes for B.
    a, b = matrices(16)
    text = program(str(descriptor(4096, 1024, 1)), str(descriptor(512, 256, 3)),
                   product(f"m64n{N}k16.f32.bf16.bf16", tail="1, 1, 1, 1, 1"))  # fmt: skip
    faults, found = run(text, swizzled(bf16_bits(a.T), 8), swizzled(bf16_bits(b), 2))
    assert faults == []
    assert np.array_equal(found, a @ b + 1)


def test_signs_and_a_fresh_accumulator():
    a, b = matrices(16)
    plain = str(descriptor(128, 256, 0))
    left, right = core(bf16_bits(a)), core(bf16_bits(b.T))
    for tail, expected in (("0, 1, 1, 0, 0", a @ b), ("1, -1, 1, 0, 0", 1 - a @ b),
                           ("1, -1, -1, 0, 0", 1 + a @ b)):  # fmt: skip
        text = program(plain, plain, product(f"m64n{N}k16.f32.bf16.bf16", tail=tail))
        faults, found = run(text, left, right)
        assert faults == [] and np.array_equal(found, expected)


def test_a_product_with_a_in_registers():
    _, b = matrices(16)
    plain = str(descriptor(128, 256, 0))
    one = "mov.b32 %x1, 0x3F803F80;"  # a pair of ones of bf16
    text = program(plain, plain, product(
        f"m64n{N}k16.f32.bf16.bf16", "{%x1, %x1, %x1, %x1}", "1, 1, 1, 0"
    )).replace("mov.b32 %x0", f"{one}\nmov.b32 %x0")  # fmt: skip
    faults, found = run(text, np.zeros(1), core(bf16_bits(b.T)))
    assert faults == []
    assert np.array_equal(found, np.tile(b.sum(0) + 1, (64, 1)))


PLAIN = str(descriptor(128, 256, 0))
GOOD = program(PLAIN, PLAIN, product(f"m64n{N}k16.f32.bf16.bf16"))
FENCE = "wgmma.fence.sync.aligned;\n"
WAIT = "wgmma.wait_group.sync.aligned 0;\n"
BROKEN = {
    "no fence": (FENCE, "", "wgmma-fence"),
    "fence before the last change": (
        "add.f32 %o0, %o0, 0f00000000;\n" + FENCE, FENCE + "add.f32 %o0, %o0, 0f00000000;\n",
        "wgmma-fence",
    ),
    "a copy behind the fence": (FENCE, FENCE + "mov.b32 %o1, 0f3F800000;\n", None),
    "a copy of a late value": (
        FENCE, FENCE + "add.f32 %x3, %x0, %x0;\nmov.b32 %o1, %x3;\n", "wgmma-fence",
    ),
    "no wait": (WAIT, "", "wgmma-early"),
    "a wait for older groups": (WAIT, "wgmma.wait_group.sync.aligned 1;\n", "wgmma-early"),
    "no commit": ("wgmma.commit_group.sync.aligned;\n", "", "wgmma-early"),
    "a write before the wait": (WAIT, f"mov.b32 %o3, 0;\n{WAIT}", "wgmma-early"),
    "no proxy fence": ("fence.proxy.async.shared::cta;\n", "", "proxy-fence"),
    "a proxy fence after the barrier": (
        "fence.proxy.async.shared::cta;\nbar.sync 0;", "bar.sync 0;\nfence.proxy.async;", None,
    ),
    "no barrier": ("bar.sync 0;\n", "", "shared-race"),
    "the tile is overwritten": (WAIT, f"st.shared.b32 [%r4], 77;\n{WAIT}", "async-overwrite"),
    "never waited for": (WAIT, "ret;\n", "async-lost"),
    "half a warp": ("wgmma.mma", "setp.lt.u32 %p0, %r0, 16;\n@%p0 wgmma.mma", "convergence"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_product_is_reported(case):
    old, new, kind = BROKEN[case]
    assert GOOD.count(old) == 1
    a, b = matrices(16)
    faults, _ = run(GOOD.replace(old, new), core(bf16_bits(a)), core(bf16_bits(b.T)))
    found = {fault.kind for fault in faults}
    assert found == set() if kind is None else kind in found


def test_a_tile_off_the_swizzle_pattern_is_reported():
    a, b = matrices(16)
    tall = np.zeros((N, 64), np.uint16)
    tall[:, :16] = bf16_bits(b.T)
    good = descriptor(16, 1024, 1)
    for shift, offset, kinds in ((0, 0, set()), (8, 0, {"swizzle"}), (8, 1, set())):
        # The tile starts a row of 128 bytes later; the base offset of the descriptor says so.
        b_descriptor = good | offset << 49
        text = program(PLAIN, str(b_descriptor), product(f"m64n{N}k16.f32.bf16.bf16"))
        text = text.replace("or.b64 %d5", f"add.s64 %d5, %d5, {shift};\nor.b64 %d5")
        faults, found = run(text, core(bf16_bits(a)), swizzled(tall, 8))
        assert {fault.kind for fault in faults} == kinds
        assert shift or np.array_equal(found, a @ b + 1)
