"""Compilations of the kernels that work row by row: erasing and the ring writes."""

from collections.abc import Iterator

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import Case, configurations, tile_name
from sede_kernels.backends.triton.enqueue import ADVANCE_OPTIONS, BLOCK_D, OPTIONS
from sede_kernels.backends.triton.enqueue_fragments import BLOCK
from sede_kernels.backends.triton.enqueue_fragments import OPTIONS as SET_OPTIONS
from sede_kernels.backends.triton.erase import EXACT
from sede_kernels.backends.triton.kernels.enqueue import _enqueue_advance_kernel, _enqueue_kernel
from sede_kernels.backends.triton.kernels.enqueue_fragments import _enqueue_fragments_kernel
from sede_kernels.backends.triton.kernels.erase import _erase_bwd_kernel, _erase_fwd_kernel

#: Rules with the most work: order statistics, and sums in fp64.
_RULES = ("quantile", "prob")


def _erase_cases(architecture: str, key: str, config: launch.Config) -> Iterator[Case]:
    tile = {"BLOCK_R": config.rows, "BLOCK_L": int(key)}
    sizes = dict.fromkeys(("N", "L"), "i32")
    thresholds = dict.fromkeys(("threshold_high", "threshold_low", "keep_min"), "i32")
    for rule in _RULES:
        yield Case(
            f"erase {key} {rule} {tile_name(config)}",
            architecture,
            _erase_fwd_kernel,
            {
                **dict.fromkeys(("attention", "out"), "*fp32"),
                "lengths": "*i64",
                "mask_out": "*u8",
                **sizes,
                **thresholds,
            },
            {"HAS_LENGTHS": True, "RULE": rule, "LOW": True, "RENORMALIZE": True, **tile},
            {**config.options, **EXACT},
        )
    yield Case(
        f"erase_backward {key} {tile_name(config)}",
        architecture,
        _erase_bwd_kernel,
        {
            **dict.fromkeys(("grad_out", "attention", "grad"), "*fp32"),
            "mask": "*u8",
            **sizes,
        },
        {"RENORMALIZE": True, **tile},
        config.options,
    )


def _enqueue_cases(architecture: str) -> Iterator[Case]:
    integers = ("skipped", "K", "D", "stride_rk", "stride_kn")
    for quantize in (False, True):
        yield Case(
            f"enqueue {'int8' if quantize else 'bf16'}",
            architecture,
            _enqueue_kernel,
            {
                "rows": "*i8" if quantize else "*bf16",
                "keys": "*fp32",
                **({"row_scale": "*fp32"} if quantize else {}),
                **dict.fromkeys(("ids", "ptr", "count", "rejected", "key_ids"), "*i64"),
                **dict.fromkeys(integers, "i32"),
            },
            {
                "stride_rd": 1,
                "stride_kd": 1,
                "NORMALIZE": True,
                "QUANTIZE": quantize,
                "HAS_IDS": True,
                "BLOCK_D": BLOCK_D,
            },
            OPTIONS,
            frozenset({"D", "stride_rk", "stride_kn"}),
        )
    yield Case(
        "enqueue advance",
        architecture,
        _enqueue_advance_kernel,
        {"ptr": "*i64", **dict.fromkeys(("N", "K"), "i32")},
        {},
        ADVANCE_OPTIONS,
    )


def _set_cases(architecture: str) -> Iterator[Case]:
    sizes = ("skipped", "K", "L", "D", "W", "stride_rk", "stride_rl", "stride_kn", "stride_kl")
    pointers = ("lengths", "ids", "ptr", "count", "rejected", "key_lengths", "key_ids")
    for stored in ("fp32", "bf16"):
        yield Case(
            f"enqueue_fragments {stored}",
            architecture,
            _enqueue_fragments_kernel,
            {
                "rows": f"*{stored}",
                "keys": "*fp32",
                **dict.fromkeys(pointers, "*i64"),
                **dict.fromkeys(sizes, "i32"),
            },
            {"stride_rd": 1, "stride_kd": 1, "HAS_LENGTHS": True, "HAS_IDS": True, "BLOCK": BLOCK},
            SET_OPTIONS,
            frozenset({"D", "stride_rk", "stride_rl", "stride_kn", "stride_kl"}),
        )


def cases(architecture: str) -> Iterator[Case]:
    """Every width of the erasing table with its heaviest rules, and the ring writes."""
    for key, config in configurations("erase", architecture):
        yield from _erase_cases(architecture, key, config)
    yield from _enqueue_cases(architecture)
    yield from _set_cases(architecture)
