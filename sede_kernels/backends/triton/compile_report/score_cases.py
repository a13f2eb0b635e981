"""Compilations of the loss of given scores."""

from collections.abc import Iterator
from typing import Any

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import Case, configurations, tile_name
from sede_kernels.backends.triton.kernels.score_info_nce import _score_bwd_kernel, _score_fwd_kernel

#: All that a call can ask for.
_EVERYTHING = (
    "OWN", "HAS_VALID", "HAS_IDS", "HAS_KEYS", "FURTHER", "WEIGHTED", "NORMALIZE", "SECOND",
    "SCORES",
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(("scores", "scores_grad", "temperature", "hardness"), "*fp32"),
    **dict.fromkeys(("table", "grad"), "*fp32"),
    **dict.fromkeys(("ids", "key_ids", "negatives", "hardest_column"), "*i64"),
    "valid": "*u8",
    **dict.fromkeys(("B", "N", "blocks", "stride_g", "stride_sr", "stride_sc"), "i32"),
    **dict.fromkeys(("stride_vr", "stride_vc", "stride_or", "stride_oc"), "i32"),
    "weight": "fp32",
}


def _cases(architecture: str, key: str, config: launch.Config) -> Iterator[Case]:
    dense = ("stride_sr", "stride_or") if key == "columns" else ("stride_sc", "stride_oc")
    constants: dict[str, Any] = {
        **dict.fromkeys(_EVERYTHING, True),
        **dict.fromkeys(("KEEP", "DETACH", "POSITIVE"), False),
        **dict.fromkeys(dense, 1),
        "stride_p": 0,
        "BLOCK_R": config.rows,
        "BLOCK_J": config.cols,
    }
    for way, kernel in (("forward", _score_fwd_kernel), ("backward", _score_bwd_kernel)):
        named = set(kernel.arg_names)
        yield Case(
            f"score_info_nce {way} {key} {tile_name(config)}",
            architecture,
            kernel,
            {name: kind for name, kind in _TYPES.items() if name in named - set(dense)},
            {name: value for name, value in constants.items() if name in named},
            config.options,
        )


def cases(architecture: str) -> Iterator[Case]:
    """Both kernels for both layouts of the scores."""
    for key, config in configurations("score_info_nce", architecture):
        yield from _cases(architecture, key, config)
