"""Values of the flags, checked before anything is measured."""

import argparse
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path

WHOLE = 2**31 - 1  # most of a whole number that becomes a size
THREADS = 1024
SEED = 2**63 - 1


def whole(low: int, high: int = WHOLE) -> Callable[[str], int]:
    """Type of a flag: a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low} to {high}, got {text!r}"
            )
        return value

    return read


def seconds(text: str) -> float:
    """Type of a flag: a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Type of a flag: names of ``known`` with commas between them, each once."""

    def read(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",")]
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"must be names of {', '.join(known)}, got {name!r}"
                )
        return list(dict.fromkeys(found))

    return read


def numbers(text: str) -> list[int]:
    """Type of a flag: whole numbers above 0 with commas between them, each once."""
    return list(dict.fromkeys(whole(1)(number.strip()) for number in text.split(",")))


def check_place(path: Path, flag: str) -> None:
    """Refuse a file that cannot be written in the end.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ValueError(f"{flag} must be a file, got the folder {path}")
    _check_writable(path.parent, path, flag)


def check_folder(path: Path, flag: str) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        ValueError: with the path.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{flag} must be a folder, got the file {path}")
    _check_writable(path, path, flag)


def _check_writable(folder: Path, path: Path, flag: str) -> None:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    # Nothing can be made in /proc, whatever its permissions say.
    pretended = there.resolve().parts[1:2] == ("proc",)
    if pretended or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: {path} cannot be written; choose another place")
