"""Tests run against the installed package, where there is one, not against the source folder.

``pip install .`` puts the native module into site-packages only; the folder ``sede_kernels`` beside
this file would shadow it. An editable install (``pip install -e``) points back here.
"""

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).parent)
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)] + [_ROOT]
os.environ["PYTHONSAFEPATH"] = "1"  # the same for the processes that tests start

import pytest  # noqa: E402

import sede_kernels  # noqa: E402


def pytest_configure() -> None:
    """Without native kernels some tests are skipped; with older ones that would mislead."""
    reason = sede_kernels.available_backends()["cpu"] or ""
    if "other sources" in reason:
        pytest.exit(f"{reason}.", returncode=4)
