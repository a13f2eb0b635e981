"""Host side that the ops share: operand dtypes, descriptors, splits, devices."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

_HALF = (torch.bfloat16, torch.float16)
_TRITON_NAME = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
MAX_PARTS = 256


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch on the tensor's GPU, on that GPU's current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def operand_dtype(query: Tensor, bank: Tensor) -> torch.dtype:
    """What the matrix units multiply: a half type only where no input loses bits by it."""
    if query.dtype in _HALF and bank.dtype in (query.dtype, torch.int8):
        return query.dtype
    return torch.float32


def triton_dtype(dtype: torch.dtype) -> Any:
    """The Triton name of an operand dtype."""
    return _TRITON_NAME[dtype]


def precision() -> str:
    """How fp32 operands are multiplied: torch's own setting decides."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def operand_kind(dtype: torch.dtype) -> str:
    """Row key of the launch tables: ``half``, ``tf32`` or ``ieee``."""
    return "half" if dtype in _HALF else precision()


def padded(size: int, smallest: int = 16) -> int:
    """The next power of two."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def has_descriptors(architecture: str) -> bool:
    """Whether the architecture class has the copy engine that tensor descriptors drive."""
    return architecture in ("sm_90", "sm_100")


def describable(tensor: Tensor) -> bool:
    """Whether the copy engine can read the matrix: contiguous rows on 16-byte boundaries."""
    size = tensor.element_size()
    return (
        tensor.stride(1) == 1
        and tensor.stride(0) * size % 16 == 0
        and tensor.stride(0) >= tensor.shape[1]
        and tensor.data_ptr() % 16 == 0
        and tensor.numel() > 0
    )


def descriptor(tensor: Tensor, rows: int, cols: int) -> TensorDescriptor:
    """A host-made descriptor: it travels as a kernel argument, so graphs capture it by value."""
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, cols])


def parts_of_bank(row_blocks: int, tiles: int, cores: int) -> int:
    """Into how many parts the bank is split so that every multiprocessor has work.

    The busiest multiprocessor decides: waves x (tiles of a part + the fixed cost of a program, in
    tiles: loading its queries, filling the pipeline, writing its sums).
    """
    fixed = 4
    most = max(1, min(MAX_PARTS, tiles, -(-2 * cores // row_blocks)))

    def cost(parts: int) -> int:
        waves = -(-row_blocks * parts // cores)
        return waves * (-(-tiles // parts) + fixed)

    best = min(range(1, most + 1), key=cost)
    per_part = -(-tiles // best)
    return -(-tiles // per_part)
