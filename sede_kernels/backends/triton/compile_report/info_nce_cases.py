"""Compilations of the weighted InfoNCE around its passes."""

from collections.abc import Iterator

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._host import MAX_PARTS
from sede_kernels.backends.triton.compile_report.cases import Case, configurations, tile_name
from sede_kernels.backends.triton.info_nce import BLOCK, BLOCK_S
from sede_kernels.backends.triton.kernels.info_nce import _info_nce_finish_kernel
from sede_kernels.backends.triton.kernels.info_nce_focus import _info_nce_focus_kernel
from sede_kernels.backends.triton.kernels.info_nce_scale import _info_nce_scale_kernel
from sede_kernels.backends.triton.kernels.info_nce_start import _info_nce_start_kernel

_INPUTS = ("query", "key", "other_query", "other_key")
_STRIDES = ("stride_qb", "stride_kb")
_UNIT = {"stride_qd": 1, "stride_kd": 1}
_FACTORS = ("scale", "focus", "log_tau_plus", "log_rest")
_ALIGNED = frozenset({"D", *_STRIDES})


def _tile(config: launch.Config) -> dict[str, int]:
    return {"BLOCK_B": config.rows, "BLOCK_D": config.cols}


def _finish_case(
    architecture: str, name: str, config: launch.Config, bank: int, batch: int
) -> Case:
    """All statistics and gradients of two sides; of parts there is one accumulator."""
    whole = bank == 1
    bank_floats = ("bank_peak", "bank_total", "bank_moment", "bank_acc")
    batch_floats = ("batch_peak", "batch_total", "batch_moment")
    further = ("further_lse", "further_moment", "further_acc")
    of_batch = ("batch_further_lse", "batch_further_moment")
    counts = ("bank_count", "bank_index", "batch_count", "further_count", "batch_further_count")
    outputs = ("numbers", "similarity", "loss_out", "table", "grad")
    types = {
        **dict.fromkeys(_INPUTS, "*bf16"),
        **dict.fromkeys((*bank_floats, *batch_floats, *further, *of_batch, *outputs), "*fp32"),
        **dict.fromkeys((*counts, "count_out", "index_out"), "*i64"),
        "flag": "*i1",
        "slots": "*i32",
        **dict.fromkeys(("bank_parts", "batch_parts", "B", "D", *_STRIDES), "i32"),
        **dict.fromkeys(_FACTORS, "fp32"),
    }
    constants = {
        **_UNIT,
        "SIDES": 2,
        "E": 2,
        "A": 2 if whole else 1,
        "BANK": bank,
        "BATCH": batch,
        "FURTHER_BANK": 1,
        "FURTHER_BATCH": 1,
        "WEIGHTED": True,
        "DETACHED": False,
        "DEBIASED": True,
        "MOMENTS": True,
        "HARDEST": True,
        "FOCUS": True,
        "REDUCTION": "sum",
        **_tile(config),
        "BLOCK_S": BLOCK_S,
    }
    return Case(
        f"info_nce finish {name} {tile_name(config)}",
        architecture,
        _info_nce_finish_kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
    )


def _focus_case(architecture: str, config: launch.Config) -> Case:
    return Case(
        f"info_nce focus {tile_name(config)}",
        architecture,
        _info_nce_focus_kernel,
        {
            **dict.fromkeys(("table", "grad", "loss_out"), "*fp32"),
            **dict.fromkeys(("B", "D"), "i32"),
            **dict.fromkeys(("scale", "focus"), "fp32"),
        },
        {"SIDES": 2, **_tile(config), "BLOCK": BLOCK},
        config.options,
        _ALIGNED,
    )


def _start_case(architecture: str, config: launch.Config) -> Case:
    scalars = ("temperature", "hardness", "margin")
    return Case(
        f"info_nce start {tile_name(config)}",
        architecture,
        _info_nce_start_kernel,
        {
            **dict.fromkeys(_INPUTS, "*bf16"),
            **dict.fromkeys((*scalars, "numbers", "similarity", "limit"), "*fp32"),
            **dict.fromkeys(("B", "D", *_STRIDES), "i32"),
            **dict.fromkeys(("inverse", "beta", "first", "most"), "fp32"),
        },
        {**_UNIT, "SIDES": 2, "WEIGHTED": True, **_tile(config)},
        config.options,
        _ALIGNED,
    )


def _scale_case(architecture: str, config: launch.Config) -> Case:
    floats = ("upstream", "table", "unit", "added_query", "added_key")
    gradients = ("to_query", "to_key", "to_other_query", "to_other_key")
    return Case(
        f"info_nce scale {tile_name(config)}",
        architecture,
        _info_nce_scale_kernel,
        {
            **dict.fromkeys((*floats, "to_temperature", "to_hardness"), "*fp32"),
            **dict.fromkeys(("query", "other_query", *gradients), "*bf16"),
            **dict.fromkeys(("B", "D", "step", "stride_qb"), "i32"),
        },
        {"stride_qd": 1, "SIDES": 2, **_tile(config), "BLOCK": BLOCK},
        config.options,
        _ALIGNED,
    )


def cases(architecture: str) -> Iterator[Case]:
    """Whole sums and parts, a launch to start, the focused mean and the gradients."""
    for key, config in configurations("info_nce", architecture):
        if key == "scale":
            yield _scale_case(architecture, config)
            continue
        parts = MAX_PARTS if key == "parts" else 1
        yield _finish_case(architecture, key, config, parts, parts)
        if key == "whole":
            yield _focus_case(architecture, config)
            yield _start_case(architecture, config)
