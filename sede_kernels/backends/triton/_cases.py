"""What the report compiles: every kernel with the signature that the host side launches."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import triton.language as tl

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._bank_kernels import _bank_lse_fwd_kernel
from sede_kernels.backends.triton._combine_kernels import _bank_lse_combine_kernel
from sede_kernels.backends.triton.bank_lse import COMBINE, COMBINE_OPTIONS

_ARCHITECTURES = tuple(launch.CAPABILITY)
#: Row key's operand -> (pointer type, Triton type, input precision).
OPERANDS = {
    "half": ("bf16", tl.bfloat16, "tf32"),
    "tf32": ("fp32", tl.float32, "tf32"),
    "ieee": ("fp32", tl.float32, "ieee"),
}
#: Integer arguments that are multiples of 16 in every large problem.
_ALIGNED = frozenset({"D", "stride_qb", "stride_mk", "stride_xr", "stride_yr"})


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, the types of its arguments, its constants and launch options."""

    name: str
    architecture: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    matrix: bool = False  # it multiplies matrices: sm_90 must use HGMMA
    copies: bool = False  # it loads by descriptor: TMA instructions must show
    wide: bool = field(default=True)  # enough rows for a warpgroup's 64

    def source(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """(signature, constants, attributes) in the form ``ASTSource`` takes."""
        signature, constants, attributes = {}, {}, {}
        for position, name in enumerate(self.kernel.arg_names):
            kind = self.types.get(name)
            if kind is None:
                signature[name] = "constexpr"
                constants[name] = self.constants.get(name)
                continue
            signature[name] = kind
            if kind.startswith("*") or name in _ALIGNED:
                attributes[(position,)] = [["tt.divisibility", 16]]
        return signature, constants, attributes


def _bank_case(architecture: str, key: str, config: launch.Config) -> Case:
    kind, width, accumulators, flags = key.split("/")
    holes = {"holes": "with"}.get(flags, "without" if accumulators != "0" else "none")
    full = flags != "lean"
    pointer, operand, precision = OPERANDS[kind]
    whole = width != "step"
    block_d = int(width) if whole else (64 if kind == "half" else 32)
    # The copy that leaves empty slots out is made of masked loads.
    descriptors = architecture in ("sm_90", "sm_100") and holes != "with"
    integers = ("B", "K", "D", "stride_qb", "stride_mk", "tiles_per_part")
    types = {
        "query": f"*{pointer}",
        "bank": f"*{pointer}",
        "scales": "*fp32",
        "query_ids": "*i64",
        "bank_ids": "*i64",
        **({"limit": "*fp32"} if full else {}),
        **dict.fromkeys(("peak_out", "lse_out", "moment_out", "acc_out"), "*fp32"),
        **dict.fromkeys(("count_out", "index_out"), "*i64"),
        **dict.fromkeys(integers, "i32"),
    }
    if descriptors:
        types["query_desc"] = f"tensordesc<{pointer}[{config.rows},{block_d}]>"
        types["bank_desc"] = f"tensordesc<{pointer}[{config.cols},{block_d}]>"
    constants = {
        "stride_qd": 1,
        "stride_md": 1,
        "E": 3 if full else 2,
        "A": int(accumulators),
        "SCALE_0": 0,
        "SCALE_1": 1,
        "SCALE_2": 2,
        "SELECT": "mask",
        "HAS_ROW_IDS": True,
        "HAS_COL_IDS": True,
        "HAS_LIMIT": full,
        "IN_BATCH": False,
        "MOMENTS": full,
        "HARDEST": full,
        "SCALED": False,
        "WHOLE": whole,
        "DESC": descriptors,
        "FINAL": False,
        "HOLES": holes,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_B": config.rows,
        "BLOCK_K": config.cols,
        "BLOCK_D": block_d,
    }
    return Case(
        f"bank_lse {key}",
        architecture,
        _bank_lse_fwd_kernel,
        types,
        constants,
        config.options,
        matrix=kind != "ieee",
        copies=descriptors,
    )


def _combine_case(architecture: str) -> Case:
    floats = ("scales", "peak_in", "total_in", "moment_in", "acc_in")
    types = {
        **dict.fromkeys((*floats, "lse_out", "moment_out", "acc_out", "top_out"), "*fp32"),
        **dict.fromkeys(("count_in", "index_in", "count_out", "index_out"), "*i64"),
        **dict.fromkeys(("S", "B", "D"), "i32"),
    }
    flags = {"E": 3, "A": 2, "ACC_0": 0, "ACC_1": 1, "MOMENTS": True, "HARDEST": True}
    return Case(
        "bank_lse combine",
        architecture,
        _bank_lse_combine_kernel,
        types,
        {**flags, **COMBINE},
        COMBINE_OPTIONS,
    )


def cases() -> Iterator[Case]:
    """Every configuration of every table on every architecture, and the fixed ones."""
    for architecture in _ARCHITECTURES:
        for key, by_architecture in launch.tables()["bank_lse"].items():
            for entry in by_architecture[architecture]:
                yield _bank_case(architecture, key, launch.Config(*entry))
        yield _combine_case(architecture)
