"""A loaded PTX text: its kernels, their launch on arrays, and the faults of a launch."""

import ctypes
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx.machine.buffers import Buffer, TensorMap
from tests.ptx.machine.library import machine, text_of

_READ_ONLY, _UNWRITTEN = 1, 2


@dataclass(frozen=True)
class Fault:
    """Something that a launch did wrong.

    Attributes:
        kind: one of the kinds that docs/ptx.md explains.
        text: where it was and what it was; the first of them.
        count: how often it was seen at that instruction.
    """

    kind: str
    text: str
    count: int

    def __str__(self) -> str:
        return f"{self.text} x{self.count}"


@dataclass(frozen=True)
class Options:
    """How a launch runs.

    Attributes:
        seed: 0 runs the warps in order, any other number in a random order.
        slice: most instructions that a warp runs in a turn, drawn at random; 0: until it blocks.
        unwritten: report reads of shared memory that nobody wrote.
        lanes: report races between the lanes of a warp.
        proxies: report missing fences of the async proxy.
        step_limit: thousand instructions of a warp that a block may run; 0: any number.
        threads: blocks that run at a time; 0: one a core.
        histogram: count the instructions by opcode.
    """

    seed: int = 0
    slice: int = 0
    unwritten: bool = True
    lanes: bool = True
    proxies: bool = True
    step_limit: int = 100_000
    threads: int = 0
    histogram: bool = False

    def numbers(self) -> ctypes.Array[ctypes.c_uint32]:
        """As the C interface takes them."""
        values = (self.seed, self.slice, self.unwritten, self.lanes, self.proxies)
        return (ctypes.c_uint32 * 8)(
            *map(int, values), self.step_limit, self.threads, int(self.histogram)
        )


class Module:
    """A PTX text, decoded.

    Raises:
        RuntimeError: the text has an instruction that the machine does not execute; it names the
            line.
    """

    def __init__(self, text: str) -> None:
        self._machine = machine()
        self._handle = self._machine.ptx_load(text.encode())
        if not self._handle:
            raise RuntimeError(self._machine.ptx_error().decode())
        self.kernels = sorted(text_of(self._machine.ptx_kernels, self._handle).split())
        self.executed = self.lane_executed = 0
        self.histogram: dict[str, int] = {}

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._machine.ptx_free(self._handle)

    @property
    def handle(self) -> int:
        """What the C interface knows it by."""
        return int(self._handle)

    def parameters(self, name: str) -> list[tuple[int, int]]:
        """Bytes and offset of every parameter of a kernel."""
        most = 512
        numbers = (ctypes.c_uint32 * (2 * most))()
        count = self._machine.ptx_parameters(self._handle, name.encode(), numbers, most)
        if count < 0:
            raise ValueError(f"The module has no kernel {name!r}; it has {self.kernels}.")
        return [(numbers[2 * i], numbers[2 * i + 1]) for i in range(count)]

    def coverage(self, name: str) -> dict[int, bool]:
        """Line of the text -> whether an active lane has run it in any launch so far."""
        most = 1 << 20
        lines = (ctypes.c_uint32 * most)()
        ran = (ctypes.c_uint8 * most)()
        count = self._machine.ptx_coverage(self._handle, name.encode(), lines, ran, most)
        found: dict[int, bool] = {}
        for i in range(count):
            found[lines[i]] = found.get(lines[i], False) or bool(ran[i])
        return found

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any] = (),
        *,
        shared: int = 0,
        regions: Iterable[Buffer] = (),
        options: Options | None = None,
    ) -> list[Fault]:
        """Run a kernel to its end.

        Args:
            name: of the kernel.
            grid: blocks in x, y and z; what is missing is 1.
            block: threads in x, y and z.
            arguments: a Buffer, a TensorMap, a number or bytes for every parameter; what is
                missing is 0.
            shared: bytes of dynamic shared memory.
            regions: further buffers that the kernel may reach.
            options: how it runs.

        Returns:
            The faults, in the order of the blocks.

        Raises:
            RuntimeError: the kernel cannot be run on.
        """
        block_bytes, at, keep = self._pack(name, arguments)
        self._machine.ptx_clear(self._handle)
        seen: set[int] = set()
        for buffer in [*regions, *arguments]:
            owner = buffer.buffer if isinstance(buffer, TensorMap) else buffer
            if isinstance(owner, Buffer) and owner.bytes and id(owner) not in seen:
                seen.add(id(owner))
                flags = _READ_ONLY * owner.read_only + _UNWRITTEN * owner.unwritten
                self._machine.ptx_region(
                    self._handle, owner.address, owner.bytes, flags, owner.name.encode()
                )
        dims = (ctypes.c_uint32 * 7)(*_three(grid), *_three(block), shared)
        chosen = options or Options()
        count = self._machine.ptx_launch(
            self._handle, name.encode(), dims, at, block_bytes, chosen.numbers()
        )
        del keep
        if count < 0:
            raise RuntimeError(self._machine.ptx_error().decode())
        numbers = (ctypes.c_uint64 * 2)()
        self._machine.ptx_statistics(self._handle, numbers)
        self.executed, self.lane_executed = numbers[0], numbers[1]
        if chosen.histogram:
            text = text_of(self._machine.ptx_histogram, self._handle)
            self.histogram = {k: int(v) for k, v in map(str.split, text.splitlines())}
        return [self._fault(i) for i in range(count)]

    def _fault(self, index: int) -> Fault:
        kind = ctypes.create_string_buffer(64)
        text = ctypes.create_string_buffer(4096)
        count = ctypes.c_uint64()
        self._machine.ptx_fault(
            self._handle, index, kind, len(kind), text, len(text), ctypes.byref(count)
        )
        return Fault(kind.value.decode(), text.value.decode(errors="replace"), count.value)

    def _pack(self, name: str, arguments: Sequence[Any]) -> tuple[int, int, Any]:
        """The parameters in memory: their bytes, their address and what keeps them there."""
        layout = self.parameters(name)
        if len(arguments) > len(layout):
            raise ValueError(f"{name} takes {len(layout)} arguments, got {len(arguments)}.")
        size = max([offset + width for width, offset in layout], default=0)
        raw = np.zeros(size + 128, np.uint8)
        shift = -raw.ctypes.data % 64
        for value, (width, offset) in zip(arguments, layout, strict=False):
            start = shift + offset
            raw[start : start + width] = np.frombuffer(_bytes_of(value, width), np.uint8)
        return size, raw.ctypes.data + shift, raw


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return int(x), int(y), int(z)


def _bytes_of(value: Any, width: int) -> bytes:
    if isinstance(value, Buffer):
        return struct.pack("<Q", value.address)
    if isinstance(value, TensorMap):
        return value.encoded
    if isinstance(value, bytes):
        return value[:width].ljust(width, b"\0")
    if isinstance(value, float | np.floating):
        return struct.pack({4: "<f", 8: "<d"}[width], float(value))
    return (int(value) % (1 << (8 * width))).to_bytes(width, "little")
