"""Files that appear under their names only when they are whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def neighbour(path: Path, ending: str) -> Path:
    """A hidden name beside ``path`` that nobody can foresee, so that nobody can plant a link."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{ending}")


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under its name only when it is complete.

    The bytes go to a hidden neighbour that did not exist, are flushed to the disk, and are renamed;
    any failure, Ctrl-C included, removes the neighbour and leaves an earlier file as it was. The
    new file has the mode that ``open`` would give it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = neighbour(path, "tmp")
    try:
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or Path(str(error.filename)) == temporary:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # on a read-only disk also where there is none
            os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as handle:
        handle.write(text.encode())
