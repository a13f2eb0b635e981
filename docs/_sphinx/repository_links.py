"""Links from a page to files of the repository that are no pages: they lead to its address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


_LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def absolute(text: str, page: Path, root: Path, address: str) -> str:
    """The text of a page, whose links out of ``docs/`` are made absolute.

    Args:
        text: Markdown.
        page: its file.
        root: of the repository.
        address: of the repository.

    Raises:
        ValueError: a link leads to a file that is not there.
    """

    def replace(link: re.Match[str]) -> str:
        words, up, rest, anchor = link[1], link[2], link[3], link[4] or ""
        target = (page.parent / (up + rest)).resolve()
        if not target.exists():
            raise ValueError(f"{page.name}: no file {up + rest}")
        if target.is_relative_to(root / "docs"):
            return link[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{words}({address}/{kind}/main/{target.relative_to(root)}{anchor})"

    return _LINK.sub(replace, text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of pages."""
    app.add_config_value("repository_url", "", "env")

    def read(app: Sphinx, name: str, source: list[str]) -> None:
        root = Path(app.srcdir).parent
        page = Path(str(app.env.doc2path(name)))
        source[0] = absolute(source[0], page, root, app.config.repository_url)

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
