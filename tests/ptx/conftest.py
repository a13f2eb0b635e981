"""Everything here runs on the PTX machine, built on demand: marker ``ptx`` or ``ptx_long``."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ptx/" in item.path.as_posix() and not item.get_closest_marker("ptx_long"):
            item.add_marker(pytest.mark.ptx)
