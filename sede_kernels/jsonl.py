"""JSON lines that survive kills: one value a line, appended whole, nothing dropped in silence."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def append(path: Path, value: Any) -> None:
    """Add one line: a single write to a file opened for appending and locked, then fsync.

    A last line that was cut (by a kill, a full disk) first gets a line end, so that only that one
    stays unreadable.

    Raises:
        OSError: the disk is full; part of the line may be there.
        ValueError: the value has no JSON: NaN, infinity.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as handle:
        # Without the lock the end may be looked at while another process is writing it.
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        if handle.seek(0, os.SEEK_END) > 0:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                line = "\n" + line
        data = line.encode()
        if handle.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(handle.fileno())


def read(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """(line number from 1, value, None) of every line, or (number, None, why it is none).

    Lines of spaces are passed over.
    """
    lines = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            yield number, json.loads(raw), None
        except (ValueError, RecursionError):
            cut = " (cut off: no line end)" if number == len(lines) else ""
            yield number, None, f"not JSON{cut}"
