"""The committed records of the ablation study can be read by the command that wrote them."""

import json
import re
from pathlib import Path

import pytest

from sede_kernels.study.measured import NEEDS
from sede_kernels.study.report import figure, run_of
from sede_kernels.training import records

FOLDER = Path(__file__).parents[2] / "records" / "ablation"
FILES = sorted(FOLDER.glob("*/*.jsonl"))

pytestmark = pytest.mark.skipif(not FILES, reason="the sources came without the study's records")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_line_is_a_run(path):
    found, complaints = records.read(path, NEEDS, check=run_of)
    assert complaints == []
    assert len(found) == len(path.read_text(encoding="utf-8").splitlines()) > 0


def test_what_is_no_run_stands_apart_and_is_explained():
    for path in FOLDER.glob("*/*/*.jsonl"):
        assert path.parent.name == "forms"
        assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")
        lines = path.read_text(encoding="utf-8").splitlines()
        assert all(isinstance(json.loads(line)["config"], dict) for line in lines)


def test_every_panel_of_a_figure_has_its_numbers(tmp_path, monkeypatch):
    """Also where another setting has a line of its own below it."""
    figures = pytest.importorskip("matplotlib.figure")
    pages = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda page, *_, **__: pages.append(page))
    found, _ = records.read(FOLDER / "icons_b32" / "runs.jsonl", NEEDS, check=run_of)
    figure([run_of(one) for one in found], tmp_path / "figure.svg")
    (page,) = pages
    shown = [panel for panel in page.axes if panel.get_visible()]
    assert len(shown) == 4
    for panel in shown:
        assert panel.get_xlabel() == "test rSum, difference to base"
        assert panel.xaxis.get_tick_params()["labelbottom"]
    left = [panel.yaxis.get_tick_params()["labelleft"] for panel in shown]
    assert left == [True, False, False, True]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/figure.svg")), ids=lambda p: p.parent.name)
def test_figures_call_the_modules_as_the_flags_do(path):
    """matplotlib writes each text as a comment beside its outlines."""
    words = re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
    assert not {"+AGE", "+LSNS", "+WIL", "AGE", "LSNS", "WIL"} & set(words)
    variants = [word for word in words if word.startswith("+")]
    assert set(variants) <= {"+erase", "+bank", "+weighting"}
    assert "all three" in words
