"""The text of a kernel that its compiled code depends on, wherever in the package it stands."""

import inspect
import io
import textwrap
import tokenize
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime.jit import JITFunction

_LAYOUT = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: "\n"}


@cache
def kernel_text(kernel: Any) -> str:
    """A kernel, the kernels that it calls and the constants that they name, in a fixed order.

    Comments, docstrings, line breaks, imports and the place of a file change nothing.
    """
    parts: dict[Any, str] = {}
    constants: set[str] = set()
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        if function in parts:
            continue
        words = _words(inspect.getsource(function.fn))
        parts[function] = " ".join(words)
        for name in dict.fromkeys(words):
            value = function.fn.__globals__.get(name)
            if isinstance(value, JITFunction):
                waiting.append(value)
            elif isinstance(value, tl.constexpr):
                constants.add(f"{name} = {value.value!r}")
            elif isinstance(value, (bool, int, float, str)):
                constants.add(f"{name} = {value!r}")
    return "\n".join(sorted(parts.values()) + sorted(constants))


def _words(source: str) -> list[str]:
    """The tokens of a function's source without comments and docstrings."""
    words: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        if token.type == tokenize.STRING and words and words[-1] in _LAYOUT.values():
            continue  # a string that is a statement is a docstring
        words.append(_LAYOUT.get(token.type, token.string))
    return words
