"""The tensors of a launch, each in memory of its own with room around it.

Tensors that torch allocates may lie side by side, and an access beyond one of them would be one to
its neighbour. Here it is outside every buffer.
"""

import ctypes
from bisect import bisect_right

import numpy as np
from torch import Tensor

from tests.ptx.machine.buffers import Buffer

#: Bytes around a buffer, and the alignment that a copy keeps.
_ROOM, _ALIGNMENT = 1 << 16, 1024


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to the last."""
    if tensor.numel() == 0:
        return 0
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def spans_of(named: list[tuple[str, Tensor]]) -> list[tuple[int, int, str]]:
    """First byte, end and name of tensors' memory, in order; those that overlap are one."""
    spans = sorted((t.data_ptr(), t.data_ptr() + _span(t), name) for name, t in named if _span(t))
    merged: list[tuple[int, int, str]] = []
    for start, end, name in spans:
        if merged and start < merged[-1][1]:
            first, last, names = merged[-1]
            merged[-1] = (first, max(last, end), names if name in names else f"{names}+{name}")
        else:
            merged.append((start, end, name))
    return merged


class Memory:
    """Copies of named tensors.

    Attributes:
        buffers: the copies.
    """

    def __init__(self, named: list[tuple[str, Tensor]]) -> None:
        self._spans = spans_of(named)
        self._starts = [start for start, _, _ in self._spans]
        self._raw: list[np.ndarray] = []
        self.buffers: list[Buffer] = []
        for start, end, name in self._spans:
            raw = np.full(end - start + 2 * _ROOM + _ALIGNMENT, 0xFF, np.uint8)
            first = raw.ctypes.data + _ROOM
            first += (start - first) % _ALIGNMENT
            ctypes.memmove(first, start, end - start)
            self._raw.append(raw)
            self.buffers.append(Buffer(first, end - start, name))

    def address(self, tensor: Tensor) -> int:
        """Where the copy of a named tensor is; of one without elements, an address of nothing."""
        if _span(tensor) == 0:
            return _ALIGNMENT
        at = bisect_right(self._starts, tensor.data_ptr()) - 1
        return self.buffers[at].address + tensor.data_ptr() - self._starts[at]

    def write_back(self) -> None:
        """Into the tensors what the launch left in their copies."""
        for (start, end, _), buffer in zip(self._spans, self.buffers, strict=True):
            ctypes.memmove(start, buffer.address, end - start)
