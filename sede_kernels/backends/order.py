"""Which of Triton and CUDA comes first on a GPU: what a run of benchmarks/gpu_suite.sh measured.

``order.json`` beside this file is a list of rows ``{"device": "sm_90", "op": "info_nce", "shape":
"narrow", "first": "cuda"}``. Without a row Triton comes first.
"""

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).with_name("order.json")
#: Columns of the deciding tensor up to which a shape has that name.
SHAPES = {"narrow": 256, "middle": 512}
USUAL = ("triton", "cuda", "torch")


def shape_class(columns: int) -> str:
    """The name of shapes with so many columns; ``wide`` beyond all."""
    return next((name for name, most in SHAPES.items() if columns <= most), "wide")


@cache
def rows() -> dict[tuple[str, str, str], str]:
    """(device, op, shape) -> the backend that comes first."""
    found = json.loads(FILE.read_text()) if FILE.exists() else []
    return {(row["device"], row["op"], row["shape"]): row["first"] for row in found}


@cache
def _device_class(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def of(op: str, tensor: Tensor) -> tuple[str, ...]:
    """The backends for a CUDA tensor in the order in which ``auto`` asks them."""
    measured = rows()
    if not measured:
        return USUAL
    columns = tensor.shape[-1] if tensor.ndim else 0
    forward = op.removesuffix("_backward")
    place = _device_class(tensor.device.index or 0), forward, shape_class(columns)
    first = measured.get(place, USUAL[0])
    return (first, *(name for name in USUAL if name != first))
