"""Compilations of the similarity of chosen pairs: every tile, the rules with the most work."""

from collections.abc import Iterator

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import (
    OPERANDS,
    Case,
    configurations,
    tile_name,
)
from sede_kernels.backends.triton.kernels.cross_attention_pairs import (
    _pairs_bwd_kernel,
    _pairs_fwd_kernel,
)
from sede_kernels.backends.triton.kernels.cross_attention_sides import (
    _pairs_query_grad_kernel,
    _pairs_source_grad_kernel,
)
from sede_kernels.backends.triton.pair_launches import tile_precision

#: Launch table -> its kernels by name and what else tells their compilations apart.
_KERNELS = {
    "cross_attention_pairs": {"topk": _pairs_fwd_kernel, "prob": _pairs_fwd_kernel},
    "cross_attention_pairs_backward": {"topk": _pairs_bwd_kernel, "prob": _pairs_bwd_kernel},
    "cross_attention_pairs_grad": {
        "query": _pairs_query_grad_kernel,
        "source": _pairs_source_grad_kernel,
    },
}
_WRITTEN = ("d_scores", "attention", "d_dot", "along", "d_norm")
_FLOATS = ("out", "grad", *_WRITTEN, "d_query", "d_source")
_STEPS = ("query_row", "query_step", "source_row", "source_step", "first", "step", "number")
_STRIDES = ("stride_ob", "stride_on", "stride_gb", "stride_gn")
_INTEGERS = ("pairs", "L", "R", "D", *_STEPS, *_STRIDES)
_THRESHOLDS = ("threshold_high", "threshold_low", "keep_min")


def _case(op: str, architecture: str, key: str, config: launch.Config, what: str) -> Case:
    kind, _, blocks = key.partition("/")
    sources = int(blocks.split("x")[1])
    precision = tile_precision(kind)
    types = {
        **dict.fromkeys(("query", "source"), f"*{OPERANDS[kind][0]}"),
        **dict.fromkeys(_FLOATS, "*fp32"),
        **dict.fromkeys(("query_lengths", "source_lengths"), "*i64"),
        "lost": "*i8",
        **dict.fromkeys((*_INTEGERS, *_THRESHOLDS), "i32"),
        **dict.fromkeys(("smoothing", "scale"), "fp32"),
    }
    kernel = _KERNELS[op][what]
    return Case(
        f"{op} {key} {what} {tile_name(config)}",
        architecture,
        kernel,
        {name: types[name] for name in kernel.arg_names if name in types},
        {
            "MARKED": True,
            "QUERY_VARY": True,
            "SOURCE_VARY": True,
            "AGGREGATE": "lse",
            "RULE": what,
            "LOW": True,
            "RENORMALIZE": True,
            "PRECISION": precision,
            "BLOCK_M": config.rows,
            "BLOCK_N": sources,
            "BLOCK_D": config.cols,
        },
        config.options,
        frozenset({"D"}),
        # A warp group multiplies 64 rows; with fewer the products are a warp's own.
        matrix=precision != "ieee" and (sources if what == "source" else config.rows) >= 64,
    )


def cases(architecture: str) -> Iterator[Case]:
    """Every tile of the three tables."""
    for op, kernels in _KERNELS.items():
        for key, config in configurations(op, architecture):
            for what in kernels:
                yield _case(op, architecture, key, config, what)
