"""How long a tile's arithmetic is on compute capability 9.0, read from machine code.

The walk over the bank is the shortest loop with matrix instructions. Warps jump over three blocks
of it unless they must: where a column may not count, where similarities have a limit, and where O
changes its base. Another block, the search for the maximum, is left out where the maximum is fixed.
"""

import re
from collections import Counter
from typing import NamedTuple

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")


class Loop(NamedTuple):
    """Instructions of a warp for a tile: all, in the rare blocks, in the search for the maximum."""

    loop: int = 0
    rare: int = 0
    maximum: int = 0


def loop_of(code: str) -> Loop:
    """The counts of one kernel; zeros without a loop of matrix instructions."""
    lines = [
        (int(at, 16), name, int(found[1], 16) if name == "BRA" and found else None)
        for at, name, rest in _INSTRUCTION.findall(code)
        for found in [_TARGET.search(rest)]
    ]
    best: list[tuple[int, str, int | None]] = []
    for last, (at, _, target) in enumerate(lines):
        if target is None or target >= at:
            continue
        body = [line for line in lines[: last + 1] if line[0] >= target]
        if any("MMA" in name for _, name, _ in body) and (not best or len(body) < len(best)):
            best = body
    rare = maximum = 0
    for at, _, target in best:
        if target is None or not at < target <= best[-1][0]:
            continue
        block = Counter(name for where, name, _ in best if at < where < target)
        if block["SEL"] or (block and set(block) == {"FMUL"}):
            rare += block.total()
        elif block["FMNMX"]:
            maximum += block.total()
    return Loop(len(best), rare, maximum)
