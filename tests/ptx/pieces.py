"""A pytest plugin: a file of tests in pieces, each of which goes on where the last one ended.

``-p tests.ptx.pieces``, with the path of a file of outcomes in ``SEDE_PTX_OUTCOMES`` and the
seconds of this piece in ``SEDE_PTX_SECONDS`` (0: no limit). The file gets a line of JSON for what
was collected and one for each test that ended, at once: a killed process loses one test. Tests that
passed or were skipped in an earlier piece do not run again, those that failed do.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OUTCOMES, SECONDS = "SEDE_PTX_OUTCOMES", "SEDE_PTX_SECONDS"
_STARTED = time.monotonic()
#: Of a test, from its three phases: the last of these that one of them had.
_ORDER = ("passed", "skipped", "failed")
_phases: dict[str, list[pytest.TestReport]] = {}


def load(path: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What was collected, and test -> the line of its last run; a line cut off is left out."""
    collected: list[str] = []
    ended: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "collected" in line:
            collected = line["collected"]
        else:
            ended[line["test"]] = line
    return collected, ended


def _append(line: dict[str, Any]) -> None:
    with Path(os.environ[OUTCOMES]).open("a") as file:
        file.write("\n" + json.dumps(line))  # ends a line that was cut off


def _done(ended: dict[str, dict[str, Any]]) -> set[str]:
    return {test for test, line in ended.items() if line["outcome"] != "failed"}


def complete(path: Path) -> bool:
    """Every test has run, and none failed."""
    collected, ended = load(path)
    return bool(collected) and set(collected) <= _done(ended)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is done."""
    done = _done(load(Path(os.environ[OUTCOMES]))[1])
    _append({"collected": [item.nodeid for item in items]})
    again = [item for item in items if item.nodeid in done]
    if again:
        items[:] = [item for item in items if item.nodeid not in done]
        config.hook.pytest_deselected(items=again)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A phase ended."""
    _phases.setdefault(report.nodeid, []).append(report)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """A test ended: its line."""
    reports = _phases.pop(nodeid)
    worst = max((report.outcome for report in reports), key=_ORDER.index)
    seconds = round(sum(report.duration for report in reports), 2)
    _append({"test": nodeid, "outcome": worst, "seconds": seconds})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """After the time of a piece no other test begins."""
    limit = float(os.environ.get(SECONDS, "0"))
    try:
        return (yield)
    finally:
        if limit and time.monotonic() - _STARTED >= limit:
            item.session.shouldstop = "the time of this piece is over"
