"""How many processes share a run of the tests: the choice of the conftest.py at the root."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def conftest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return request.config.pluginmanager.get_plugin(str(ROOT / "conftest.py"))


def chosen(conftest, source: str = "TESTPATHS", **options: object) -> tuple[object, object]:
    """Processes and how they share, for a run started so."""
    plain = {"numprocesses": None, "dist": "no", "collectonly": False, "usepdb": False}
    config = SimpleNamespace(
        option=SimpleNamespace(**plain | options),
        ArgsSource=pytest.Config.ArgsSource,
        args_source=pytest.Config.ArgsSource[source],
    )
    conftest.pytest_cmdline_main(config)
    return config.option.numprocesses, config.option.dist


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_a_run_of_everything_has_a_process_a_core(conftest, monkeypatch, cores, processes) -> None:
    monkeypatch.setattr(conftest, "cores", lambda: cores)
    assert chosen(conftest) == (processes, "worksteal")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("ARGS", {}),
        ("INVOCATION_DIR", {}),
        ("TESTPATHS", {"collectonly": True}),
        ("TESTPATHS", {"usepdb": True}),
    ],
    ids=["a file", "a folder", "collect only", "debugger"],
)
def test_other_runs_have_one(conftest, source, options) -> None:
    assert chosen(conftest, source, **options) == (None, "no")


def test_what_was_asked_for_stays(conftest) -> None:
    assert chosen(conftest, numprocesses=0) == (0, "no")
    assert chosen(conftest, numprocesses=7, dist="load") == (7, "load")


def test_tests_of_a_gpu_have_one(conftest, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen(conftest) == (None, "no")


def test_slow_files_come_first_and_stay_whole(conftest) -> None:
    names = [("a", False), ("a", False), ("b", False), ("b", True), ("b", False), ("c", True)]
    items = [
        SimpleNamespace(path=path, place=place, get_closest_marker=lambda _, slow=slow: slow)
        for place, (path, slow) in enumerate(names)
    ]
    config = SimpleNamespace()
    conftest.pytest_collection_modifyitems(config, items)
    assert [item.place for item in items] == [0, 1, 2, 3, 4, 5], "one process goes by the folders"
    config.workerinput = {}
    conftest.pytest_collection_modifyitems(config, items)
    assert [item.place for item in items] == [2, 3, 4, 5, 0, 1]
