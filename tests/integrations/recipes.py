"""The changes that docs/integrations.md asks for, read from there and applied to a host's files."""

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"<!-- recipe: (\S+) -->\n+```diff\n(.*?)^```", re.M | re.S)


class Hunk(NamedTuple):
    """Lines of one place in a file; without indentation of their own, as in the page."""

    file: str
    old: list[str]
    new: list[str]


def documented() -> dict[str, list[Hunk]]:
    """Name of the recipe -> its hunks, of every page that holds some."""
    pages = [page.read_text() for page in sorted(DOCS.glob("integrations*.md"))]
    found = [match.groups() for page in pages for match in BLOCK.finditer(page)]
    recipes = {name: list(_hunks(name, body)) for name, body in found}
    assert len(recipes) == len(found), "two recipes have one name"
    return recipes


def _hunks(name: str, body: str) -> list[Hunk]:
    hunks: list[Hunk] = []
    file = ""
    for line in body.splitlines():
        if line.startswith("--- "):
            file = line[4:].strip()
            hunks.append(Hunk(file, [], []))
        elif line.startswith("@@"):
            hunks.append(Hunk(file, [], []))
        elif line[:1] in ("-", "+", " "):
            if line[0] != "+":
                hunks[-1].old.append(line[1:])
            if line[0] != "-":
                hunks[-1].new.append(line[1:])
        else:
            raise ValueError(f"recipe {name}: a line starts with none of '-', '+', ' ': {line!r}")
    hunks = [hunk for hunk in hunks if hunk.old or hunk.new]
    empty = [hunk for hunk in hunks if not hunk.old]
    if empty:
        raise ValueError(f"recipe {name}: {empty[0].new[0]!r} has no line that says where it goes.")
    return hunks


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def apply(folder: Path, hunks: list[Hunk]) -> None:
    """Change the files in place; every hunk must fit in exactly one place."""
    for hunk in hunks:
        path = folder / hunk.file
        lines = path.read_text().splitlines()
        wanted = [line.strip() for line in hunk.old]
        here = [line.strip() for line in lines]
        places = [
            start
            for start in range(len(lines) - len(wanted) + 1)
            if here[start : start + len(wanted)] == wanted
        ]
        if len(places) != 1:
            raise ValueError(f"{hunk.file}: {hunk.old[0].strip()!r} fits {len(places)} places.")
        start = places[0]
        shift = _margin(lines[start]) - _margin(hunk.old[0])
        fresh = [" " * max(0, _margin(line) + shift) + line.lstrip() for line in hunk.new]
        lines[start : start + len(wanted)] = fresh
        path.write_text("\n".join(lines) + "\n")
