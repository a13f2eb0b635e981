"""Which pictures are for training, for choosing and for testing."""

from typing import Any

import numpy as np

from sede_kernels.training.data.draw import Picture

SEED = 2022
PARTS = ("train", "dev", "test")

Rows = np.ndarray[Any, np.dtype[np.int64]]


def part_sizes(count: int) -> tuple[int, int]:
    """Images in dev and test: 500 and 1,000 of a full set, a tenth and a fifth of a small one.

    >>> part_sizes(7272)
    (500, 1000)
    >>> part_sizes(600)
    (60, 120)
    """
    return (500, 1000) if count >= 3500 else (count // 10, count // 5)


def random_split(pictures: list[Picture]) -> dict[str, Rows]:
    """A shuffle with a fixed seed, cut in three."""
    order = np.random.default_rng(SEED).permutation(len(pictures))
    dev, test = part_sizes(len(pictures))
    return {
        "test": np.sort(order[:test]),
        "dev": np.sort(order[test : test + dev]),
        "train": np.sort(order[test + dev :]),
    }


def grouped_split(pictures: list[Picture]) -> dict[str, Rows]:
    """The harder split: pictures of one base name (``bell``, ``bell outline``) stay together.

    Whole groups, shuffled with the fixed seed, fill test, then dev, exactly: a group that would
    overfill a part goes to the next one that has room.
    """
    groups: dict[str, list[int]] = {}
    for row, picture in enumerate(pictures):
        groups.setdefault(picture.base, []).append(row)
    members = list(groups.values())
    dev, test = part_sizes(len(pictures))
    room = {"test": test, "dev": dev, "train": len(pictures)}
    parts: dict[str, list[int]] = {"test": [], "dev": [], "train": []}
    for index in np.random.default_rng(SEED).permutation(len(members)):
        rows = members[int(index)]
        part = next(name for name in parts if len(parts[name]) + len(rows) <= room[name])
        parts[part] += rows
    return {name: np.sort(np.asarray(rows, np.int64)) for name, rows in parts.items()}


SPLITS = {"": random_split, "_grouped": grouped_split}
