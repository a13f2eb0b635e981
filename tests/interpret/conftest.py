"""These tests run Triton's interpreter: set TRITON_INTERPRET=1 and give them their own process."""

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    off = pytest.mark.skip(reason="needs TRITON_INTERPRET=1 in a process of its own")
    for item in items:
        if "tests/interpret/" in item.path.as_posix():
            item.add_marker(pytest.mark.interpret)
            if os.environ.get("TRITON_INTERPRET") != "1":
                item.add_marker(off)
