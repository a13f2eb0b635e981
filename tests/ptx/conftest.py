"""Everything here runs on the PTX machine, which is built first: marker ``ptx``."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ptx/" in item.path.as_posix():
            item.add_marker(pytest.mark.ptx)
