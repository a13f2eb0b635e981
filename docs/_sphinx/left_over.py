"""What has no place in the contents or on a page of the API yet is put at their end."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import sede_kernels

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
#: Stand where the rest goes, each on its page.
MARKS = {
    "index": "<!-- further pages -->",
    "api/functions": "<!-- further names -->",
    "api/integrations": "<!-- further integrations -->",
}
_DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|data):: (\S+)$", re.MULTILINE)


def described() -> set[str]:
    """The names that the pages of the API describe."""
    pages = (path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    return {name for page in pages for name in _DIRECTIVE.findall(page)}


def pages() -> list[str]:
    """Pages that the contents do not list."""
    contents = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^[\w/-]+$", contents, re.MULTILINE)) | {"index"}
    found = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    return sorted(found - listed)


def names() -> list[str]:
    """Public names that no page describes."""
    return sorted(set(sede_kernels.__all__) - described())


def integrations() -> list[str]:
    """Modules of ``sede_kernels.integrations`` that no page describes."""
    folder = Path(sede_kernels.__file__).parent / "integrations"
    found = {f"sede_kernels.integrations.{path.stem}" for path in folder.glob("[a-z]*.py")}
    return sorted(found - described())


def rest(page: str) -> str:
    """The Markdown that takes the place of the mark of a page."""
    if page == "index":
        listed = pages()
        return "\n".join(["```{toctree}", ":caption: Further", "", *listed, "```"]) * bool(listed)
    if page == "api/functions":
        lines = [f".. auto{_kind(name)}:: {name}" for name in names()]
        head = ["## Further names", "", "```{eval-rst}", ".. currentmodule:: sede_kernels", ""]
    else:
        lines = [f".. automodule:: {name}\n   :members:\n" for name in integrations()]
        head = ["## Further integrations", "", "```{eval-rst}"]
    return "\n".join([*head, *lines, "```"]) if lines else ""


def _kind(name: str) -> str:
    return "class" if inspect.isclass(getattr(sede_kernels, name)) else "function"


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of pages."""

    def read(_: Sphinx, page: str, source: list[str]) -> None:
        if page in MARKS:
            source[0] = source[0].replace(MARKS[page], rest(page))

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
