"""Compilations of the pass over the bank and of the kernel that combines its parts."""

from collections.abc import Iterator

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._chunks import STEP
from sede_kernels.backends.triton._host import has_descriptors
from sede_kernels.backends.triton._sums import COMBINE, COMBINE_OPTIONS
from sede_kernels.backends.triton.bank_lse import WIDEST
from sede_kernels.backends.triton.compile_report.cases import (
    OPERANDS,
    Case,
    configurations,
    tile_name,
)
from sede_kernels.backends.triton.kernels.bank_lse import _bank_lse_fwd_kernel
from sede_kernels.backends.triton.kernels.combine import _bank_lse_combine_kernel

_ALIGNED = frozenset({"D", "stride_qb", "stride_mk"})


def _bank_case(
    architecture: str,
    key: str,
    config: launch.Config,
    holes: str,
    *,
    desc: bool = True,
    int8: bool = False,
    pair: bool = False,
) -> Case:
    width, variant = key.split("/")
    whole = width != "step"
    kind, full = ("half", variant in ("full", "safe")) if whole else (variant, True)
    pointer, operand, precision = OPERANDS[kind]
    stored = "i8" if int8 else pointer
    block_d = int(width) if whole else STEP[kind]
    descriptors = desc and has_descriptors(architecture)
    integers = ("B", "K", "D", "stride_qb", "stride_mk", "tiles_per_part")
    types = {
        "query": f"*{pointer}",
        "bank": f"*{stored}",
        **({"row_scale": "*fp32"} if int8 else {}),
        "scales": "*fp32",
        "query_ids": "*i64",
        "bank_ids": "*i64",
        **({"other_bank": f"*{stored}", "other_ids": "*i64"} if pair else {}),
        **({"other_scale": "*fp32"} if pair and int8 else {}),
        **({"limit": "*fp32"} if full else {}),
        **dict.fromkeys(("peak_out", "lse_out", "moment_out", "acc_out"), "*fp32"),
        **dict.fromkeys(("count_out", "index_out"), "*i64"),
        **dict.fromkeys(integers, "i32"),
    }
    if descriptors:
        types["query_desc"] = f"tensordesc<{pointer}[{config.rows},{block_d}]>"
        types["bank_desc"] = f"tensordesc<{stored}[{config.cols},{block_d}]>"
        if pair:
            types["other_desc"] = types["bank_desc"]
    constants = {
        "stride_qd": 1,
        "stride_md": 1,
        "SIDES": 2 if pair else 1,
        "E": 3 if full else 2,
        "A": int(whole),
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
        "STATIC": variant == "static",
        "SCALED": int8,
        "DESC": descriptors,
        "FINAL": False,
        "HOLES": holes,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_B": config.rows,
        "BLOCK_K": config.cols,
        "BLOCK_D": block_d,
    }
    copy = "" if descriptors or not has_descriptors(architecture) else " (pointers)"
    copy = " (int8)" if int8 else copy
    return Case(
        f"bank_lse{'_pair' if pair else ''} {key}{copy} {tile_name(config)}",
        architecture,
        _bank_lse_fwd_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=kind != "ieee",
        copies=descriptors,
    )


def _combine_case(architecture: str) -> Case:
    floats = ("scales", "peak_in", "total_in", "moment_in", "mass_in", "acc_in")
    types = {
        **dict.fromkeys((*floats, "lse_out", "moment_out", "acc_out", "top_out"), "*fp32"),
        **dict.fromkeys(("count_in", "index_in", "count_out", "index_out"), "*i64"),
        **dict.fromkeys(("S", "B", "D"), "i32"),
    }
    flags = {"E": 3, "A": 2, "ACC_0": 0, "ACC_1": 1, "MOMENTS": True, "HARDEST": True, "MASS": True}
    return Case(
        "bank_lse combine",
        architecture,
        _bank_lse_combine_kernel,
        types,
        {**flags, **COMBINE},
        COMBINE_OPTIONS,
        frozenset({"D"}),
    )


def cases(architecture: str) -> Iterator[Case]:
    """The variants that a row of the table serves, the most demanding of each."""
    for pair in (False, True):
        for key, config in configurations("bank_lse_pair" if pair else "bank_lse", architecture):
            safe = key.endswith("/safe")
            holes = "none" if key.startswith("step/") else "with" if safe else "without"
            yield _bank_case(architecture, key, config, holes, pair=pair)
            if has_descriptors(architecture) and holes != "without":
                yield _bank_case(architecture, key, config, holes, desc=False, pair=pair)
            if safe and key != f"{WIDEST}/safe":
                yield _bank_case(architecture, key, config, "none", int8=True, pair=pair)
    yield _combine_case(architecture)
