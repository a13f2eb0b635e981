"""Random tensors of odd shapes, layouts and sizes for the fuzz, and its tolerances."""

import os
from typing import Any

import numpy as np
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

import sede_kernels as sede

#: The interpreter takes milliseconds for each block of a kernel: it gets smaller cases.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
#: The Triton kernels have no float64.
FLOATS = (torch.float32, torch.bfloat16, torch.float16) + (torch.float64,) * (not INTERPRETING)
LAYOUTS = ("rows", "columns", "padded", "spread", "every other row", "one row repeated")
#: Unit roundoff of what a kernel computes with, and of what it stores a gradient in.
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def backends() -> list[str]:
    """What this process can run on CPU tensors."""
    if INTERPRETING:
        return ["triton"]
    return [name for name in ("cpu", "torch") if sede.available_backends()[name] is None]


def served(backend: str, function: Any, *args: Any, **keywords: Any) -> Any:
    """The function's result; a case that this backend says it does not serve is drawn anew."""
    try:
        return function(*args, backend=backend, **keywords)
    except sede.BackendUnavailableError:
        reject()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same matrix at other addresses."""
    rows, columns = values.shape
    if layout == "columns":
        return values.T.contiguous().T
    if layout == "padded":
        room = values.new_full((rows, columns + 3), float("nan"))
        room[:, 1 : columns + 1] = values
        return room[:, 1 : columns + 1]
    if layout == "spread":
        room = values.new_full((rows, 2 * columns), float("nan"))
        room[:, ::2] = values
        return room[:, ::2]
    if layout == "every other row":
        room = values.new_full((2 * rows, columns), float("nan"))
        room[::2] = values
        return room[::2]
    if layout == "one row repeated" and rows:
        return values[:1].expand(rows, columns)
    return values.contiguous()


def matrix(
    rng: np.random.Generator, rows: int, dim: int, dtype: torch.dtype, layout: str, size: float
) -> Tensor:
    """Rows of about the length ``size``; some are zero, some equal."""
    values = rng.normal(size=(rows, dim))
    values *= size / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    if rows > 2:
        values[rng.integers(rows)] = values[0]
        if rng.random() < 0.2:
            values[rng.integers(rows)] = 0.0
    return laid_out(torch.from_numpy(values).to(dtype), layout)


def exact(tensor: Tensor) -> np.ndarray:
    """The tensor's values in fp64, as the oracle takes them."""
    return tensor.detach().double().numpy()


def longest(*matrices: np.ndarray) -> float:
    """Largest row norm of several matrices."""
    return max((float(np.linalg.norm(m, axis=1).max(initial=0.0)) for m in matrices), default=0.0)


if INTERPRETING:
    sizes = st.one_of(st.integers(0, 5), st.sampled_from([1, 16, 17]))
    slots = st.one_of(st.integers(0, 20), st.sampled_from([1, 63, 64, 65, 130]))
    dims = st.one_of(st.integers(1, 20), st.sampled_from([1, 2, 16, 17, 64, 65]))
else:
    sizes = st.one_of(st.integers(0, 9), st.sampled_from([1, 16, 17, 33, 70]))
    slots = st.one_of(st.integers(0, 40), st.sampled_from([1, 63, 64, 65, 130, 257, 1031]))
    dims = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 16, 17, 64, 65, 129, 257]))
lengths_of_rows = st.sampled_from([1.0, 1.0, 1.0, 0.1, 3.0])
seeds = st.integers(0, 2**32 - 1)
