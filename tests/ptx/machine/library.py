"""The C interface of the machine (src/api.cpp), with the types of its arguments."""

import ctypes
import os
from functools import cache

from tests.ptx.machine import build

_NUMBERS = ctypes.POINTER(ctypes.c_uint32)
_TEXT = (ctypes.c_char_p, ctypes.c_int)
_HANDLE = ctypes.c_void_p
_LONG = ctypes.c_uint64
_SIGNATURES = {
    "ptx_error": (ctypes.c_char_p, []),
    "ptx_load": (_HANDLE, [ctypes.c_char_p]),
    "ptx_free": (None, [_HANDLE]),
    "ptx_kernels": (ctypes.c_int, [_HANDLE, *_TEXT]),
    "ptx_parameters": (ctypes.c_int, [_HANDLE, ctypes.c_char_p, _NUMBERS, ctypes.c_int]),
    "ptx_clear": (None, [_HANDLE]),
    "ptx_region": (None, [_HANDLE, _LONG, _LONG, ctypes.c_uint32, ctypes.c_char_p]),
    "ptx_launch": (
        ctypes.c_int,
        [_HANDLE, ctypes.c_char_p, _NUMBERS, ctypes.c_void_p, _LONG, _NUMBERS],
    ),
    "ptx_fault": (
        ctypes.c_int,
        [_HANDLE, ctypes.c_int, *_TEXT, *_TEXT, ctypes.POINTER(_LONG)],
    ),
    "ptx_coverage": (
        ctypes.c_int,
        [_HANDLE, ctypes.c_char_p, _NUMBERS, ctypes.POINTER(ctypes.c_uint8), ctypes.c_int],
    ),
    "ptx_statistics": (None, [_HANDLE, ctypes.POINTER(_LONG)]),
    "ptx_histogram": (ctypes.c_int, [_HANDLE, *_TEXT]),
    "ptx_table": (ctypes.c_int, [*_TEXT]),
    "ptx_cuda_configure": (
        None,
        [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint32, _NUMBERS, ctypes.c_int],
    ),
    "ptx_cuda_forget": (None, []),
    "ptx_cuda_stand_in": (None, [ctypes.c_char_p, ctypes.c_void_p]),
    "ptx_cuda_buffer": (None, [_LONG, _LONG, ctypes.c_uint32, ctypes.c_char_p]),
    "ptx_cuda_report": (ctypes.c_int, [ctypes.POINTER(_LONG), *_TEXT]),
}


@cache
def machine() -> ctypes.CDLL:
    """The library, built if need be; ``SEDE_PTX_SANITIZE`` names the sanitizers to build with."""
    loaded = ctypes.CDLL(str(build.library(os.environ.get("SEDE_PTX_SANITIZE", ""))))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded


def text_of(call, *arguments) -> str:
    """What a function of the interface writes into a buffer, however long it is."""
    size = 1 << 12
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed = call(*arguments, buffer, size)
        if needed < size:
            return buffer.value.decode()
        size = needed + 1
