"""The interpreter is chosen when Triton is imported, so these tests have processes of their own.

A plain ``pytest`` run collects only ``test_own_process.py``, which starts them; with
``TRITON_INTERPRET=1`` in the environment it is the other way round, and so it is where
``python -m tests.ptx.machine -m pytest`` runs the kernels' compiled code.
"""

import os
from pathlib import Path

import pytest

from sede_kernels.backends.triton import emulated

EMULATED = emulated() is not None
INTERPRETING = EMULATED or os.environ.get("TRITON_INTERPRET") == "1"
_STARTER = "test_own_process.py"
_FILES = [path.name for path in Path(__file__).parent.glob("test_*.py")]
collect_ignore = [_STARTER] if INTERPRETING else [name for name in _FILES if name != _STARTER]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interpret/" in item.path.as_posix():
            item.add_marker(pytest.mark.ptx if EMULATED else pytest.mark.interpret)
