"""A page as a notebook: its text, its commands and its Python, with what running them printed.

    python docs/_sphinx/notebook.py docs/tutorial.md            # runs every block
    python docs/_sphinx/notebook.py docs/tutorial.md --write    # and writes the notebook beside it

Blocks marked ``shell`` become cells with a leading ``!``, blocks marked ``python`` plain cells. The
Python runs in this process, one cell after the other; the commands run in an empty folder.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(shell|python)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
#: A link to a page, which a notebook cannot follow, becomes its words.
_PAGE = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")

Cell = dict[str, Any]


def _lines(text: str) -> list[str]:
    return text.strip("\n").splitlines(keepends=True)


def _cell(kind: str, text: str, number: int) -> Cell:
    cell: Cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(text)}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


def cells(text: str) -> list[Cell]:
    """The cells of a page, not run yet."""

    def parts() -> Iterator[tuple[str, str]]:
        at = 0
        for block in _BLOCK.finditer(text):
            yield "markdown", _PAGE.sub(r"\1", text[at : block.start()])
            shell = block[1] == "shell"
            yield "code", "".join(f"!{x}" for x in _lines(block[2])) if shell else block[2]
            at = block.end()
        yield "markdown", _PAGE.sub(r"\1", text[at:])

    kept = [part for part in parts() if part[1].strip()]
    return [_cell(kind, words, number) for number, (kind, words) in enumerate(kept)]


def _shown(text: str) -> list[str]:
    """What was printed, with the data folder where it usually is."""
    home = os.environ.get("SEDE_DATA")
    return _lines(text.replace(home, "~/.cache/sede") if home else text)


def run(notebook: list[Cell], folder: Path) -> None:
    """Execute the cells in a folder and put what they print into them.

    Raises:
        Exception: what a cell raises; CalledProcessError for a command.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    code = [cell for cell in notebook if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        source, printed = "".join(cell["source"]), io.StringIO()
        if source.startswith("!"):
            commands = source.replace("\n!", "\n").removeprefix("!")
            done = subprocess.run(
                ["bash", "-ec", commands], cwd=folder, env={**os.environ, "PATH": path},
                stdout=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            printed.write(done.stdout)
            done.check_returncode()
        else:
            with redirect_stdout(printed):
                exec(compile(source, f"cell {number}", "exec"), names)
        cell["execution_count"] = number
        stream = {"output_type": "stream", "name": "stdout", "text": _shown(printed.getvalue())}
        cell["outputs"] = [stream] if printed.getvalue() else []
        print(f"-- cell {number}\n{printed.getvalue()}", end="", flush=True)


def document(notebook: list[Cell]) -> str:
    """The notebook as a file of format 4.5."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": notebook,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Run a page, and write its notebook where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="write the notebook beside the page")
    arguments = parser.parse_args()
    notebook = cells(arguments.page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    if arguments.write:
        arguments.page.with_suffix(".ipynb").write_text(document(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()
