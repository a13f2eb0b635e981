"""The page of the command line, from the parsers of the commands themselves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from unittest import mock

from sede_kernels import cli

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Stands on the page where the commands go.
MARK = "<!-- commands -->"
#: Those of `sede` itself, then those of parsers of their own.
COMMANDS = ("demo", "prepare", "train", "eval", "ablate")
PASSED_ON = ("info", "bench", "bench compare", "bench plot", "bench table", "bench targets",
             "bench modules", "bench host", "bench ahead")  # fmt: skip
#: Flags of `sede train` that mean something else in `sede ablate`.
OWN = {"--out"}
_CODE = re.compile(r"`[^`]+`|(?<![\w-])--?[a-z][\w-]*|(?<!\w)\$?[A-Z]{3,}_[A-Z]+|<\w+>[\w./-]*")


class _Found(BaseException):
    """Carries a parser out of the command that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that `sede WORDS` would read its flags with.

    Raises:
        RuntimeError: the command reads none.
    """

    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", caught):
        try:
            cli.main(words)
        except _Found as found:
            return found.parser
    raise RuntimeError(f"`sede {' '.join(words)}` has no parser")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def _sentence(text: str) -> str:
    """Help text as Markdown: whole lines, flags and paths as code."""
    text = " ".join(text.replace("%%", "%").replace("``", "`").split())
    return _CODE.sub(lambda found: found[0] if found[0][0] == "`" else f"`{found[0]}`", text)


def _flag(action: argparse.Action) -> str:
    """How a flag is written, with its value."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    shown = ", ".join(action.option_strings)
    if action.nargs == 0:
        return f"`{shown}`"
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    return f"`{shown} [{value}]`" if action.nargs == "?" else f"`{shown} {value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(
    name: str, parser: argparse.ArgumentParser, known: argparse.ArgumentParser | None = None
) -> Iterator[str]:
    """The section of one command, line by line; without the flags of a known one."""
    text = _sentence(parser.description or "").removeprefix(f"`sede {name}`: ")
    yield from (f"## sede {name}", "", f"{text[:1].upper()}{text[1:].rstrip('.')}.", "")
    listed = {flag for action in known._actions for flag in action.option_strings} if known else ()
    actions = [a for a in parser._actions if a.dest != "help"]
    if known:
        actions = [a for a in actions if not set(a.option_strings) & set(listed) - OWN]
    if not actions:
        yield from ("It takes no arguments.", "")
        return
    yield from ("| argument | |", "| --- | --- |")
    for action in actions:
        yield f"| {_cell(_flag(action))} | {_cell(_sentence(action.help or ''))} |"
    yield ""


def commands() -> str:
    """Every command, as Markdown."""
    lines: list[str] = []
    train = subparsers(parser_of(["train"]))["train"]
    for name in COMMANDS:
        shared = train if name == "ablate" else None
        lines += markdown(name, subparsers(parser_of([name]))[name], shared)
        if shared:
            lines += ["It takes every flag of [sede train](#sede-train) beside these.", ""]
    for name in PASSED_ON:
        lines += markdown(name, parser_of(name.split()))
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of pages."""

    def read(_: Sphinx, __: str, source: list[str]) -> None:
        if MARK in source[0]:
            source[0] = source[0].replace(MARK, commands())

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
