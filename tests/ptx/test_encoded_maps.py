"""Tensor maps that the test driver makes, and those that it refuses as NVIDIA's does."""

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.ptx.machine.buffers import encoded_map
from tests.ptx.machine.library import machine

RIGHT = {
    "type": 9, "offset": 0, "sizes": (128, 70), "stride": 256, "box": (64, 64), "steps": (1, 1),
    "swizzle": 3,
}  # fmt: skip


def encode(**changes: Any) -> tuple[int, bytes, int]:
    """The result, the map, and the address of the tensor."""
    asked = {**RIGHT, **changes}
    data = np.zeros(4096, np.uint8)
    address = (data.ctypes.data + 63) // 64 * 64 + asked["offset"]
    room = np.zeros(256, np.uint8)
    start = -room.ctypes.data % 64
    result = machine().cuTensorMapEncodeTiled(
        ctypes.c_void_p(room.ctypes.data + start), asked["type"], 2, ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(*asked["sizes"]), (ctypes.c_uint64 * 1)(asked["stride"]),
        (ctypes.c_uint32 * 2)(*asked["box"]), (ctypes.c_uint32 * 2)(*asked["steps"]),
        0, asked["swizzle"], 3, 0,
    )  # fmt: skip
    return result, room[start : start + 128].tobytes(), address


@pytest.mark.parametrize("kind", [6, 9])
def test_a_right_one_is_what_the_machine_reads(kind: int) -> None:
    result, found, address = encode(type=kind)
    assert result == 0
    assert found == encoded_map(address, (128, 70), (256,), (64, 64), 2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"type": 7}, {"offset": 8}, {"sizes": (0, 70)}, {"stride": 264}, {"stride": 0},
        {"box": (64, 0)}, {"box": (64, 257)}, {"box": (128, 64)}, {"box": (4, 64)},
        {"steps": (2, 1)}, {"swizzle": 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_one_is_refused(change: dict[str, Any]) -> None:
    result, found, _ = encode(**change)
    assert result != 0
    assert found == bytes(128)
    text = ctypes.c_char_p()
    machine().cuGetErrorString(result, ctypes.byref(text))
    assert text.value is not None and text.value.startswith(b"a tensor map with ")
