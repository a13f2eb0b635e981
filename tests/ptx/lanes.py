"""Runs one instruction on given values, a lane each, and returns what it gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.ptx.machine import In, Module, Out

LANES = 32
_DTYPES = {
    **{f"u{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"b{n}": np.dtype(f"uint{n}") for n in (16, 32, 64)},
    **{f"s{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    "f32": np.dtype("float32"),
    "f64": np.dtype("float64"),
    "f16": np.dtype("uint16"),
    "bf16": np.dtype("uint16"),
    "f16x2": np.dtype("uint32"),
    "bf16x2": np.dtype("uint32"),
    "pred": np.dtype("uint32"),
}
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def bf16(value: float) -> int:
    """The bits of a number that bf16 holds exactly."""
    bits = int(np.array(value, np.float32).view(np.uint32))
    assert bits & 0xFFFF == 0, f"{value} is no bf16"
    return bits >> 16


def fp16(value: float) -> int:
    """The bits of a number that fp16 holds exactly."""
    bits = np.array(value, np.float16)
    assert float(bits) == value or np.isnan(value), f"{value} is no fp16"
    return int(bits.view(np.uint16))


def encoded(kind: str, value: Any) -> Any:
    """A value as its register holds it; pairs are (low, high)."""
    half = {"bf16": bf16, "f16": fp16}.get(kind.removesuffix("x2"))
    if half is None:
        return value
    if kind.endswith("x2"):
        low, high = value
        return half(high) << 16 | half(low)
    return half(value)


def array(kind: str, values: Sequence[Any]) -> np.ndarray:
    """Values of a type for all lanes; the last one is repeated."""
    values = [encoded(kind, value) for value in values]
    padded = [*values, *[values[-1]] * (LANES - len(values))]
    return np.array(padded, dtype=_DTYPES[kind])


def _register(kind: str) -> str:
    return ".pred" if kind == "pred" else f".b{max(16, _DTYPES[kind].itemsize * 8)}"


def _memory(kind: str) -> str:
    return f"b{_DTYPES[kind].itemsize * 8}"


def text(body: str, results: dict[str, str], sources: dict[str, str]) -> str:
    """A kernel of one warp: loads the sources, runs the body, stores the results."""
    names = [*sources, *results]
    lines = [HEADER, ".visible .entry lanes("]
    lines.append(",\n".join(f".param .u64 p_{name}" for name in names) + ")\n{")
    lines.append(".reg .b64 %address, %offset;\n.reg .b32 %lane, %word;\n.reg .pred %flag;")
    lines += [f".reg {_register(k)} %{n};" for n, k in {**sources, **results}.items()]
    lines.append("mov.u32 %lane, %laneid;")

    def point(name: str, kind: str) -> None:
        lines.append(f"ld.param.u64 %address, [p_{name}];")
        lines.append(f"mul.wide.u32 %offset, %lane, {_DTYPES[kind].itemsize};")
        lines.append("add.s64 %address, %address, %offset;")

    for name, kind in sources.items():
        point(name, kind)
        if kind == "pred":
            lines.append("ld.global.b32 %word, [%address];")
            lines.append(f"setp.ne.u32 %{name}, %word, 0;")
        else:
            sign = kind if kind[0] == "s" else _memory(kind)
            lines.append(f"ld.global.{sign} %{name}, [%address];")
    lines.append(body)
    for name, kind in results.items():
        point(name, kind)
        if kind == "pred":
            lines.append(f"selp.b32 %word, 1, 0, %{name};")
            lines.append("st.global.b32 [%address], %word;")
        else:
            lines.append(f"st.global.{_memory(kind)} [%address], %{name};")
    return "\n".join([*lines, "ret;\n}\n"])


def run(
    body: str, results: dict[str, str], sources: dict[str, tuple[str, Sequence[Any]]]
) -> dict[str, np.ndarray]:
    """Results by name, one element a lane.

    Args:
        body: PTX that sets the results, named %name.
        results: name -> type.
        sources: name -> (type, values); %name in the body.
    """
    kinds = {name: kind for name, (kind, _) in sources.items()}
    module = Module(text(body, results, kinds))
    outputs = {name: Out(LANES, _DTYPES[kind], name) for name, kind in results.items()}
    inputs = [In(array(kind, values), name) for name, (kind, values) in sources.items()]
    faults = module.launch("lanes", (1,), (LANES,), [*inputs, *outputs.values()])
    assert faults == [], "\n".join(map(str, faults))
    return {name: out.get() for name, out in outputs.items()}


def check(
    opcode: str,
    result: str,
    kinds: Sequence[str],
    columns: Sequence[Sequence[Any]],
    expected: Sequence[Any],
    tail: str = "",
) -> None:
    """Assert that ``opcode d, a, b, ...`` gives the expected values, bit for bit.

    Args:
        opcode: with its modifiers.
        result: type of d.
        kinds: types of a, b, ...
        columns: the values of every source.
        expected: d of the first lanes.
        tail: further operands.
    """
    names = "abcef"[: len(kinds)]
    operands = ", ".join(["%d", *[f"%{name}" for name in names]])
    sources = {n: (k, v) for n, k, v in zip(names, kinds, columns, strict=True)}
    found = run(f"{opcode} {operands}{tail};", {"d": result}, sources)["d"][: len(expected)]
    wanted = array(result, expected)[: len(expected)]
    same = found.view(f"u{found.itemsize}") == wanted.view(f"u{wanted.itemsize}")
    nan = np.isnan(found) & np.isnan(wanted)
    assert (same | nan).all(), f"{opcode}: {found} instead of {wanted}"
