"""Zeros that kernels find and leave, so that the last program of a launch knows it is the last.

They are kept for each stream. While a CUDA graph is captured nothing that is kept may be used: the
graph would outlive it.
"""

from functools import lru_cache

import torch
from torch import Tensor

_FEWEST = 1024


def stream_of(device: torch.device) -> int | None:
    """The current stream of a device, 0 off the GPU; None while it is captured."""
    if device.type != "cuda":
        return 0
    if torch.cuda.is_current_stream_capturing():
        return None
    return int(torch.cuda.current_stream(device).cuda_stream)


def tickets(like: Tensor, slots: int = 0) -> Tensor:
    """int32: a ticket, which is 0, and at least so many slots, on the device of ``like``."""
    stream = stream_of(like.device)
    if stream is None:
        return like.new_zeros((1 + slots,), dtype=torch.int32)
    return _kept(max(_FEWEST, 1 << slots.bit_length()), str(like.device), stream)


@lru_cache(maxsize=64)
def _kept(size: int, device: str, stream: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros((1 + size,), dtype=torch.int32, device=device)
