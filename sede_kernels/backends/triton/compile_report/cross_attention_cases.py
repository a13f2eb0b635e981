"""Compilations of the region-word similarity: every way to pack sets, the rules with most work."""

from collections.abc import Iterator
from typing import Any

from sede_kernels.backends.triton import LARGEST_FRAGMENT_SET, launch, triton_version
from sede_kernels.backends.triton.attention_sets import DENSE
from sede_kernels.backends.triton.compile_report.cases import (
    OPERANDS,
    Case,
    configurations,
    tile_name,
)
from sede_kernels.backends.triton.cross_attention import GROUP, tile_precision
from sede_kernels.backends.triton.gram import (
    GRAM_OPTIONS,
    GRAM_QUERIES,
    GRAM_STEP,
    gram_options,
)
from sede_kernels.backends.triton.kernels.cross_attention import (
    _cross_attention_bwd_kernel,
    _cross_attention_fwd_kernel,
    _gram_bwd_kernel,
    _gram_kernel,
)

_KERNELS = {
    "cross_attention": _cross_attention_fwd_kernel,
    "cross_attention_backward": _cross_attention_bwd_kernel,
}
_FLOATS = ("query_norm", "gram", "sizes", "out", "grad", "d_norm", "d_square", "d_gram")
_QUERY_INDICES = ("query_lengths", "query_order", "query_bounds")
_SOURCE_INDICES = ("source_lengths", "source_order", "source_bounds", "lengths")
_INTEGERS = ("Q", "L", "P", "R", "W8", "D", "N", "query_bucket", "source_bucket")
_THRESHOLDS = ("threshold_high", "threshold_low", "keep_min")
#: Rows that a padded set takes, by its length.
_PADDED = (16, 32, 64)
_ALIGNED = frozenset({"D"})


def _types(kernel: Any, kind: str) -> dict[str, str]:
    types = {
        **dict.fromkeys(("query", "source", "d_scores", "attention"), f"*{OPERANDS[kind][0]}"),
        **dict.fromkeys(_FLOATS, "*fp32"),
        **dict.fromkeys((*_QUERY_INDICES, *_SOURCE_INDICES), "*i64"),
        "lost": "*i8",
        **dict.fromkeys((*_INTEGERS, *_THRESHOLDS), "i32"),
        **dict.fromkeys(("stride_op", "stride_oq", "stride_gp", "stride_gq"), "i32"),
        **dict.fromkeys(("smoothing", "scale"), "fp32"),
    }
    return {name: types[name] for name in kernel.arg_names if name in types}


def _tile_case(
    op: str, architecture: str, key: str, config: launch.Config, stride: int, rule: str
) -> Case:
    kind, block = key.split("/")
    kernel, vary, sets = _KERNELS[op], stride in _PADDED, config.rows // stride
    types = _types(kernel, kind)
    if not vary:
        types = {name: kind for name, kind in types.items() if name not in _QUERY_INDICES}
    constants = {
        "QUERY_VARY": vary,
        "SOURCE_VARY": True,
        "AGGREGATE": "lse",
        "RULE": rule,
        "LOW": True,
        "RENORMALIZE": True,
        "PRECISION": tile_precision(op, kind, int(block), architecture),
        "SETS": sets,
        "STRIDE": stride,
        "GROUP": GROUP,
        "BLOCK_G": 1 << (sets - 1).bit_length(),
        "BLOCK_M": config.rows,
        "BLOCK_N": int(block),
        "BLOCK_D": config.cols,
    }
    return Case(
        f"{op} {key} {sets}x{stride} {rule} {tile_name(config)}",
        architecture,
        kernel,
        types,
        constants,
        config.options,
        _ALIGNED,
        matrix=True,
    )


def _gram_cases(architecture: str, kind: str) -> Iterator[Case]:
    precision = launch.product_precision(kind)
    forward = gram_options(architecture, triton_version())
    for name, kernel, options in (
        ("gram", _gram_kernel, forward),
        ("gram_backward", _gram_bwd_kernel, GRAM_OPTIONS),
    ):
        yield Case(
            f"cross_attention {name} {kind}",
            architecture,
            kernel,
            _types(kernel, kind),
            {
                "HAS_LENGTHS": True,
                "PRECISION": precision,
                "BLOCK_R": LARGEST_FRAGMENT_SET,
                "BLOCK_D": GRAM_STEP,
                "BLOCK_N": GRAM_QUERIES[precision],
            },
            options,
            _ALIGNED,
            matrix=True,
        )


def cases(architecture: str) -> Iterator[Case]:
    """Every tile with every padding of a set and, with 32 columns, with dense sets.

    Under ``topk``, which takes the most registers; sets of 32 rows and dense ones also under
    ``prob``, whose sums are fp64.
    """
    for op in _KERNELS:
        for key, config in configurations(op, architecture):
            for stride in (*_PADDED, *(DENSE if key.endswith("/32") else ())):
                yield _tile_case(op, architecture, key, config, stride, "topk")
                if stride not in (16, 64):
                    yield _tile_case(op, architecture, key, config, stride, "prob")
    for kind in OPERANDS:
        yield from _gram_cases(architecture, kind)
