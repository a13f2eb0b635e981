"""Memory that a kernel may reach: copies of arrays with room around them, and tensor maps."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_GUARD, _ALIGNMENT = 4096, 256
_MAP_MAGIC = 0x4D545852
_MOST_DIMENSIONS = 5


class Buffer:
    """Bytes at an address, with what may be done to them.

    Attributes:
        address: of the first byte.
        bytes: how many there are.
        name: for reports.
        read_only: a write is a fault.
        unwritten: a read before a write is a fault.
    """

    def __init__(
        self,
        address: int,
        size: int,
        name: str,
        *,
        read_only: bool = False,
        unwritten: bool = False,
    ) -> None:
        self.address, self.bytes, self.name = address, size, name
        self.read_only, self.unwritten = read_only, unwritten


class Array(Buffer):
    """A copy of an array, far from every other one, so that a stray access shows."""

    def __init__(self, array: Any, name: str, **flags: bool) -> None:
        self._like = np.ascontiguousarray(array)
        size = self._like.nbytes
        self._raw = np.full(size + 2 * _GUARD, 0xFF, np.uint8)
        start = self._raw.ctypes.data + _GUARD
        self._offset = _GUARD + -start % _ALIGNMENT
        super().__init__(self._raw.ctypes.data + self._offset, size, name, **flags)
        if not self.unwritten:
            self._view()[:] = self._like.reshape(-1).view(np.uint8)

    def _view(self) -> np.ndarray:
        return self._raw[self._offset : self._offset + self.bytes]

    def get(self) -> np.ndarray:
        """What the buffer holds now."""
        return self._view().view(self._like.dtype).reshape(self._like.shape).copy()


def In(array: Any, name: str = "input") -> Array:  # noqa: N802
    """A buffer that is only read."""
    return Array(array, name, read_only=True)


def Out(shape: int | Sequence[int], dtype: Any, name: str = "output") -> Array:  # noqa: N802
    """A buffer that must be written before it is read."""
    return Array(np.zeros(shape, dtype), name, unwritten=True)


def InOut(array: Any, name: str = "inout") -> Array:  # noqa: N802
    """A buffer that is read and written."""
    return Array(array, name)


class TensorMap:
    """A tiled tensor map for the copy engine.

    Args:
        buffer: where the tensor lies.
        sizes: of the tensor, innermost first.
        strides: bytes between neighbours of every dimension but the innermost.
        box: sizes of a tile, innermost first.
        element: bytes of an element.
        swizzle: 0 none, 1 to 3: 32, 64, 128 bytes.
    """

    def __init__(
        self,
        buffer: Buffer,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        element: int,
        swizzle: int = 0,
    ) -> None:
        self.buffer = buffer
        self.encoded = encoded_map(buffer.address, sizes, strides, box, element, swizzle)


def encoded_map(
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    element: int,
    swizzle: int,
) -> bytes:
    """The 128 bytes of a tensor map (src/tensor_map.h)."""

    def padded(values: Sequence[int], length: int, filler: int) -> list[int]:
        return [*map(int, values), *[filler] * (length - len(values))]

    return struct.pack(
        "<IIQ5Q4Q5IBBBB",
        _MAP_MAGIC,
        len(sizes),
        address,
        *padded(sizes, _MOST_DIMENSIONS, 1),
        *padded(strides, _MOST_DIMENSIONS - 1, 0),
        *padded(box, _MOST_DIMENSIONS, 1),
        element,
        swizzle,
        0,
        0,
    ).ljust(128, b"\0")
