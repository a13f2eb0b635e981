"""The instruction table is complete: every row has a source and a test, and nothing else runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.ptx.machine.library import machine, text_of

FOLDER = Path(__file__).parent
SOURCES = sorted((FOLDER / "machine" / "src").glob("*"))


def rows() -> list[list[str]]:
    return [line.split("\t") for line in text_of(machine().ptx_table).splitlines()]


def test_every_row_says_what_it_does_and_where_that_is_written():
    names = [name for name, _, _ in rows()]
    assert len(names) == len(set(names)) > 60
    for name, source, meaning in rows():
        assert re.match(r"9\.7\.\d+", source), name
        assert name in source or name in ("ld", "st"), name
        assert meaning


def test_every_instruction_has_a_test():
    tests = "\n".join(path.read_text() for path in FOLDER.glob("test_*.py"))
    for name, _, _ in rows():
        assert re.search(rf'(?:^|["\s}}]){name}(?:\.\w|;)', tests, re.MULTILINE), name


def test_every_decoder_is_in_the_table():
    source = FOLDER / "machine" / "src"
    declared = set(re.findall(r"void (decode_\w+)\(", (source / "families.h").read_text()))
    table = set(re.findall(r"decode_\w+", (source / "table.cpp").read_text()))
    reached_by_cp = {"decode_bulk", "decode_copies_arrive"}
    assert declared - reached_by_cp == table


def test_files_are_short_and_lines_too():
    for path in [*SOURCES, *FOLDER.rglob("*.py"), FOLDER / "machine" / "CMakeLists.txt"]:
        lines = path.read_text().splitlines()
        assert len(lines) < 400, path.name
        assert max(map(len, lines), default=0) <= 100, path.name


def test_the_command_prints_the_table():
    done = subprocess.run(
        [sys.executable, "-m", "tests.ptx.machine", "--table"],
        cwd=FOLDER.parents[1],
        env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ldmatrix" in done.stdout and "PTX ISA 9.0, 9.7.14" in done.stdout
