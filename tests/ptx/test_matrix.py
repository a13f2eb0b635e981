"""ldmatrix, stmatrix and mma.sync against numpy products (PTX ISA 9.7.14).

The fragments are gathered and scattered here by the drawings of the ISA, written down a second
time: lane l has row l / 4 and the pair of columns l % 4 of every 8 x 8 block.
"""

import numpy as np
import pytest

from tests.ptx.lanes import run
from tests.ptx.machine import In, Out
from tests.ptx.test_memory import kernel

LANES = range(32)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def matrices() -> np.ndarray:
    return np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)


LOAD = """.shared .align 16 .b8 tile[512];
ld.param.u64 %d0, [a];
ld.param.u64 %d1, [b];
mov.u32 %r0, %tid.x;
mul.wide.u32 %d2, %r0, 16;
add.s64 %d0, %d0, %d2;
add.s64 %d1, %d1, %d2;
mov.u32 %r1, tile;
shl.b32 %r2, %r0, 4;
add.u32 %r1, %r1, %r2;
"""


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded(transposed):
    out = Out((32, 4), np.uint32)
    module = kernel(
        ".param .u64 a, .param .u64 b",
        f"""{LOAD}
ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d0];
st.shared.v4.b32 [%r1], {{%r4, %r5, %r6, %r7}};
bar.sync 0;
ldmatrix.sync.aligned.m8n8.x4{".trans" * transposed}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r1];
st.global.v4.b32 [%d1], {{%r4, %r5, %r6, %r7}};""",
    )
    m = matrices()
    assert module.launch("k", (1,), (32,), [In(m), out]) == []
    found = out.get().view(np.uint16).reshape(32, 4, 2)
    for lane in LANES:
        for i in range(4):
            block = m[i].T if transposed else m[i]
            assert found[lane, i].tolist() == block[lane // 4, lane % 4 * 2 :][:2].tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_stored(transposed):
    m, out = matrices(), Out((32, 4), np.uint32)
    pairs = np.empty((32, 4, 2), np.uint16)
    for lane in LANES:
        for i in range(4):
            block = m[i].T if transposed else m[i]
            pairs[lane, i] = block[lane // 4, lane % 4 * 2 :][:2]
    module = kernel(
        ".param .u64 a, .param .u64 b",
        f"""{LOAD}
ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d0];
stmatrix.sync.aligned.m8n8.x4{".trans" * transposed}.shared.b16 [%r1], {{%r4, %r5, %r6, %r7}};
bar.sync 0;
ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r1];
st.global.v4.b32 [%d1], {{%r4, %r5, %r6, %r7}};""",
    )
    assert module.launch("k", (1,), (32,), [In(pairs), out]) == []
    assert np.array_equal(out.get().view(np.uint16).reshape(4, 8, 8), m)


def test_fewer_matrices_use_fewer_lanes():
    out = Out((32, 4), np.uint32)
    module = kernel(
        ".param .u64 a, .param .u64 b",
        f"""{LOAD}
setp.lt.u32 %p0, %r0, 8;
@%p0 ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d0];
@%p0 st.shared.v4.b32 [%r1], {{%r4, %r5, %r6, %r7}};
@!%p0 mov.u32 %r1, 0;
bar.sync 0;
ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r1];
st.global.v4.b32 [%d1], {{%r4, %r4, %r4, %r4}};""",
    )
    m = matrices()
    assert module.launch("k", (1,), (32,), [In(m), out]) == []
    assert out.get()[5, 0] == m[0, 1, 2] | m[0, 1, 3].astype(np.uint32) << 16


def fragments(matrix: np.ndarray, per: int, by_column: bool) -> np.ndarray:
    """Registers of a 16 x K matrix A, or of a K x 8 matrix B: (registers, lanes, per)."""
    rows = matrix.T if by_column else matrix  # the dimension without K first
    blocks = rows.shape[0] // 8
    registers = [
        [rows[b * 8 + lane // 4, (g * 4 + lane % 4) * per :][:per] for lane in LANES]
        for g in range(rows.shape[1] // (4 * per))
        for b in range(blocks)
    ]
    return np.array(registers)


def accumulators(matrix: np.ndarray) -> list[np.ndarray]:
    """A 16 x 8 matrix as four registers."""
    return [
        np.array([matrix[lane // 4 + r // 2 * 8, lane % 4 * 2 + r % 2] for lane in LANES])
        for r in range(4)
    ]


def registers_as_words(fragment: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(register).view(np.uint32).reshape(32) for register in fragment]


CASES = [
    ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, "bf16"),
    ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, "bf16"),
    ("m16n8k16.row.col.f32.f16.f16.f32", 16, "f16"),
    ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, "tf32"),
    ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, "tf32"),
    ("m16n8k32.row.col.s32.s8.s8.s32", 32, "s8"),
    ("m16n8k16.row.col.s32.u8.u8.s32", 16, "u8"),
]


@pytest.mark.parametrize("shape,depth,kind", CASES, ids=[row[0] for row in CASES])
def test_products(shape, depth, kind):
    rng = np.random.default_rng(1)
    integers = kind in ("s8", "u8")
    low = -100 if kind == "s8" else 0 if kind == "u8" else -8
    a, b = rng.integers(low, 100 if integers else 8, (2, 16, depth))
    b, c = b[:8].T, rng.integers(-8, 8, (16, 8))
    encode = {
        "bf16": bf16_bits,
        "f16": lambda x: x.astype(np.float16).view(np.uint16),
        "tf32": lambda x: x.astype(np.float32).view(np.uint32) | 0x1FFF,  # bits that are not read
        "s8": lambda x: x.astype(np.int8).view(np.uint8),
        "u8": lambda x: x.astype(np.uint8),
    }[kind]
    ea, eb = encode(a), encode(b)
    per = 4 // ea.itemsize
    dtype = np.int32 if integers else np.float32
    sources = {}
    groups = {"a": registers_as_words(fragments(ea, per, False)),
              "b": registers_as_words(fragments(eb, per, True)),
              "c": [x.astype(dtype).view(np.uint32) for x in accumulators(c)]}  # fmt: skip
    lists = {}
    for name, words in groups.items():
        lists[name] = ", ".join(f"%{name}{i}" for i in range(len(words)))
        sources |= {f"{name}{i}": ("b32", w.tolist()) for i, w in enumerate(words)}
    body = (
        f"mma.sync.aligned.{shape} {{%o0, %o1, %o2, %o3}}, {{{lists['a']}}}, {{{lists['b']}}}, "
        f"{{{lists['c']}}};"
    )
    found = run(body, {f"o{i}": "b32" for i in range(4)}, sources)
    for i, expected in enumerate(accumulators(a @ b + c)):
        assert found[f"o{i}"].view(dtype).tolist() == expected.tolist()


def test_products_with_half_accumulators():
    rng = np.random.default_rng(2)
    a, b, c = (rng.integers(-4, 4, s).astype(np.float16) for s in ((16, 16), (16, 8), (16, 8)))
    sources = {}
    for name, words in (("a", registers_as_words(fragments(a, 2, False))),
                        ("b", registers_as_words(fragments(b, 2, True))),
                        ("c", registers_as_words(fragments(c, 2, False)))):  # fmt: skip
        sources |= {f"{name}{i}": ("b32", w.tolist()) for i, w in enumerate(words)}
    found = run(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%o0, %o1}, {%a0, %a1, %a2, %a3}, "
        "{%b0, %b1}, {%c0, %c1};",
        {"o0": "b32", "o1": "b32"},
        sources,
    )
    expected = (a.astype(np.float32) @ b.astype(np.float32) + c).astype(np.float16)
    for i, words in enumerate(registers_as_words(fragments(expected, 2, False))):
        assert found[f"o{i}"].tolist() == words.tolist()


def test_a_matrix_instruction_takes_the_whole_warp():
    module = kernel(
        "", "mov.u32 %r0, 0;\nmov.u32 %r1, 0;\n"
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%r2, %r3, %r4, %r5}, {%r0, %r0}, "
        "{%r0}, {%r1, %r1, %r1, %r1};",
    )  # fmt: skip
    assert [f.kind for f in module.launch("k", (1,), (16,))] == ["convergence"]
    assert module.launch("k", (1,), (32,)) == []
