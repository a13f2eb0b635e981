"""Tests run against the installed package, where there is one, not against the source folder.

``pip install .`` puts the native module into site-packages only; the folder ``sede_kernels`` beside
this file would shadow it. An editable install (``pip install -e``) points back here.

A run of all tests is shared by as many processes as there are cores, at most ``WORKERS``.
``pytest -n 0``, and a run for which a file or a folder is named, have one.
"""

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).parent)
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)] + [_ROOT]
os.environ["PYTHONSAFEPATH"] = "1"  # the same for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

import sede_kernels  # noqa: E402

WORKERS = 4  # each holds a torch: about 0.7 GB


def cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Choose the number of processes, before pytest-xdist reads it; a GPU is for one."""
    if hasattr(config, "workerinput"):
        return  # one of these processes
    option = config.option
    everything = config.args_source is config.ArgsSource.TESTPATHS
    alone = option.collectonly or option.usepdb or torch.cuda.is_available()
    if everything and not alone and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = min(cores(), WORKERS)
        option.dist = "worksteal"  # neighbours, and so a file's fixtures, stay together
        # A thread that waits for work would keep a core from the other processes.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One of several processes begins with the slow files, so that none of them ends last."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_configure() -> None:
    """Without native kernels some tests are skipped; with older ones that would mislead."""
    reason = sede_kernels.available_backends()["cpu"] or ""
    if "other sources" in reason:
        pytest.exit(f"{reason}.", returncode=4)
