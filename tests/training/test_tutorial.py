"""The Python of docs/tutorial.md, on fewer icons; `make tutorial` runs all of the page."""

import importlib.util
from pathlib import Path

import torch

DOCS = Path(__file__).parents[2] / "docs"


def test_the_loop_of_the_tutorial_learns(icons, tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "_sphinx" / "notebook.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert page.count("icons_300") == 2
    cells = notebook.cells(page.replace("icons_300", icons.name.removesuffix("_precomp")))
    code = [cell for cell in cells if not "".join(cell["source"]).startswith("!")]
    threads = torch.get_num_threads()
    try:
        notebook.run(code, tmp_path)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "512 keys in each bank" in printed and "\ncalendar: " in printed
