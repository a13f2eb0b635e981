"""The examples of docs/banks.md."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "banks.md"


def test_the_examples_of_the_page_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert (failed, tried >= 14) == (0, True)
