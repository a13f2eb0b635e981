"""Compilations of variant B, of the top-k search and of the in-batch backward."""

from collections.abc import Iterator

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._chunks import SLICE, STEP
from sede_kernels.backends.triton._host import has_descriptors
from sede_kernels.backends.triton.batch_lse import WIDEST_SLICE
from sede_kernels.backends.triton.compile_report.cases import (
    OPERANDS,
    Case,
    configurations,
    tile_name,
)
from sede_kernels.backends.triton.hardest import COMBINE, COMBINE_OPTIONS, RANKS
from sede_kernels.backends.triton.kernels.batch_lse import _batch_lse_bwd_kernel
from sede_kernels.backends.triton.kernels.chunks import _chunk_rows_kernel, _chunk_weights_kernel
from sede_kernels.backends.triton.kernels.hardest import (
    _hardest_combine_kernel,
    _hardest_fwd_kernel,
)

_ALIGNED = frozenset({"D", "C", "stride_qb", "stride_mk", "stride_xr", "stride_yr", "side_step"})
_STRIDES = {"stride_qd": 1, "stride_md": 1}


def _weights_case(
    architecture: str, kind: str, config: launch.Config, desc: bool, int8: bool = False
) -> Case:
    pointer, operand, precision = OPERANDS[kind]
    stored, mass = "i8" if int8 else pointer, kind == "half" and not int8
    integers = ("first_col", "B", "K", "D", "C", "stride_qb", "stride_mk")
    types = {
        **dict.fromkeys(("query", "weight_out"), f"*{pointer}"),
        "bank": f"*{stored}",
        **({"row_scale": "*fp32"} if int8 else {}),
        **dict.fromkeys(("scales", "limit", "peak_out", "total_out", "moment_out"), "*fp32"),
        **({"mass_out": "*fp32"} if mass else {}),
        **dict.fromkeys(("query_ids", "bank_ids"), "*i64"),
        **dict.fromkeys(("count_out", "index_out"), "*i32"),
        **dict.fromkeys(integers, "i32"),
    }
    if desc:
        types["query_desc"] = f"tensordesc<{pointer}[{config.rows},{STEP[kind]}]>"
        types["bank_desc"] = f"tensordesc<{stored}[{config.cols},{STEP[kind]}]>"
    flags = dict.fromkeys(("HAS_ROW_IDS", "HAS_COL_IDS", "HAS_LIMIT", "MOMENTS", "HARDEST"), True)
    constants = {
        **_STRIDES,
        **flags,
        "E": 3,
        "A": 2,
        "SCALE_0": 0,
        "SCALE_1": 1,
        "SCALE_2": 2,
        "SELECT": "mask",
        "MASS": mass,
        "SCALED": int8,
        "DESC": desc,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_B": config.rows,
        "BLOCK_K": config.cols,
        "BLOCK_D": STEP[kind],
    }
    return Case(
        f"chunk_weights {kind}{_copy(architecture, desc, int8)} {tile_name(config)}",
        architecture,
        _chunk_weights_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=kind != "ieee",
        copies=desc,
    )


def _rows_case(
    architecture: str,
    kind: str,
    config: launch.Config,
    cols: int,
    holes: str,
    desc: bool,
    int8: bool = False,
) -> Case:
    pointer, operand, precision = OPERANDS[kind]
    stored, mass = "i8" if int8 else pointer, kind == "half" and not int8
    sums = ("scales", "tile_peak", "tile_total", "tile_moment", "peak_in", "peak_out")
    integers = ("first_col", "tiles", "tiles_per_part", "B", "K", "D", "C", "stride_mk")
    types = {
        "weight": f"*{pointer}",
        "bank": f"*{stored}",
        **dict.fromkeys((*sums, "total_io", "moment_io", "acc_io"), "*fp32"),
        **(dict.fromkeys(("tile_mass", "mass_io"), "*fp32") if mass else {}),
        **dict.fromkeys(("bank_ids", "count_io", "index_io"), "*i64"),
        **dict.fromkeys(("tile_count", "tile_index"), "*i32"),
        **dict.fromkeys(integers, "i32"),
    }
    # The weights are the call's own and can always be described.
    own = has_descriptors(architecture)
    if own:
        types["weight_desc"] = f"tensordesc<{pointer}[{config.rows},{cols}]>"
    if desc:
        types["bank_desc"] = f"tensordesc<{stored}[{cols},{SLICE}]>"
    constants = {
        "stride_md": 1,
        "E": 3,
        "A": 2,
        "SCALE_0": 0,
        "SCALE_1": 1,
        "MOMENTS": True,
        "HARDEST": True,
        "MASS": mass,
        "HOLES": holes,
        "DESC": desc,
        "WEIGHT_DESC": own,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_B": config.rows,
        "BLOCK_K": cols,
        "BLOCK_D": SLICE,
    }
    what = " holes" if holes == "with" else ""
    return Case(
        f"chunk_rows {kind}{what}{_copy(architecture, desc, int8)} {tile_name(config)}",
        architecture,
        _chunk_rows_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=kind != "ieee",
        copies=desc,
    )


def _hardest_case(
    architecture: str, kind: str, config: launch.Config, desc: bool, int8: bool = False
) -> Case:
    pointer, operand, precision = OPERANDS[kind]
    stored = "i8" if int8 else pointer
    integers = ("B", "K", "D", "stride_qb", "stride_mk", "tiles_per_part")
    types = {
        "query": f"*{pointer}",
        "bank": f"*{stored}",
        **({"row_scale": "*fp32"} if int8 else {}),
        **dict.fromkeys(("query_ids", "bank_ids", "below", "key_out"), "*i64"),
        **dict.fromkeys(integers, "i32"),
    }
    if desc:
        types["query_desc"] = f"tensordesc<{pointer}[{config.rows},{STEP[kind]}]>"
        types["bank_desc"] = f"tensordesc<{stored}[{config.cols},{STEP[kind]}]>"
    constants = {
        **_STRIDES,
        **dict.fromkeys(("HAS_ROW_IDS", "HAS_COL_IDS", "HAS_BOUND"), True),
        "SCALED": int8,
        "DESC": desc,
        "OPERAND": operand,
        "PRECISION": precision,
        "RANKS": RANKS,
        "BLOCK_B": config.rows,
        "BLOCK_K": config.cols,
        "BLOCK_D": STEP[kind],
    }
    return Case(
        f"hardest {kind}{_copy(architecture, desc, int8)} {tile_name(config)}",
        architecture,
        _hardest_fwd_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=kind != "ieee",
        copies=desc,
    )


def _combine_case(architecture: str) -> Case:
    types = {
        **dict.fromkeys(("key_in", "below_out", "index_out"), "*i64"),
        "value_out": "*fp32",
        **dict.fromkeys(("S", "B", "k", "first_rank"), "i32"),
    }
    return Case(
        "hardest combine", architecture, _hardest_combine_kernel, types, COMBINE, COMBINE_OPTIONS
    )


def _batch_case(architecture: str, kind: str, config: launch.Config, whole: bool) -> Case:
    pointer, operand, precision = OPERANDS[kind]
    width = WIDEST_SLICE[kind]
    types = {
        **dict.fromkeys(("own", "other", "own_2", "other_2"), f"*{pointer}"),
        **dict.fromkeys(("factor", "lse", "upstream", "scales", "limit", "grad"), "*fp32"),
        "flag": "*i1",
        "ids": "*i64",
        **dict.fromkeys(("B", "D", "stride_xr", "stride_yr", "side_step", "step"), "i32"),
    }
    constants = {
        "stride_xd": 1,
        "stride_yd": 1,
        "SIDES": 2,
        "E": 2,
        "SELECT": "mask",
        "HAS_IDS": True,
        "HAS_LIMIT": True,
        "TRANSPOSED": True,
        "WHOLE": whole,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_R": config.rows,
        "BLOCK_C": config.cols,
        "BLOCK_D": width if whole else STEP[kind],
        "SLICE_D": width,
    }
    return Case(
        f"batch_lse_backward {kind}{'' if whole else ' wide'} {tile_name(config)}",
        architecture,
        _batch_lse_bwd_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=kind != "ieee",
    )


def _copy(architecture: str, desc: bool, int8: bool = False) -> str:
    if int8:
        return " (int8)"
    return " (pointers)" if has_descriptors(architecture) and not desc else ""


def cases(architecture: str) -> Iterator[Case]:
    """Each with descriptors, where there are any, with pointers, and with an 8-bit bank."""
    copies = (True, False) if has_descriptors(architecture) else (False,)
    for key, config in configurations("chunk_weights", architecture):
        kind = "half" if key == "int8" else key
        if key != "int8":
            for desc in copies:
                yield _weights_case(architecture, kind, config, desc)
        if key != "half":
            yield _weights_case(architecture, kind, config, copies[0], int8=True)
    for key, config in configurations("chunk_rows", architecture):
        kind = "half" if key == "int8" else key.partition("/")[0]
        weights = "int8" if key == "int8" else kind
        cols = launch.Config(*launch.table("chunk_weights")[weights][architecture][0]).cols
        if key in ("int8", "ieee/int8", "tf32"):
            yield _rows_case(architecture, kind, config, cols, "none", copies[0], int8=True)
        if key.endswith("int8"):
            continue
        yield _rows_case(architecture, kind, config, cols, "without", copies[0])
        for desc in copies:
            yield _rows_case(architecture, kind, config, cols, "with", desc)
    for kind, config in configurations("hardest", architecture):
        for desc in copies:
            yield _hardest_case(architecture, kind, config, desc)
        yield _hardest_case(architecture, kind, config, copies[0], int8=True)
    yield _combine_case(architecture)
    for kind, config in configurations("batch_lse_backward", architecture):
        for whole in (True, False):
            yield _batch_case(architecture, kind, config, whole)
