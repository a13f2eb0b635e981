"""Records of runs: what can be read of a file, and a file put back as a checkpoint knows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sede_kernels import jsonl
from sede_kernels.training.files import UserError, write_text

Record = dict[str, Any]


def read(
    path: Path, needs: tuple[str, ...] = (), *, check: Callable[[Record], object] = lambda _: None
) -> tuple[list[Record], list[str]]:
    """All whole records, and one sentence for each line that is none.

    Args:
        path: a file of JSON lines; a missing one is empty.
        needs: keys without which a record is of no use.
        check: raises ``ValueError`` or ``UserError`` for a record that is of no use.
    """
    if not path.exists():
        return [], []
    records, complaints = [], []
    for number, record, fault in jsonl.read(path):
        try:
            if fault is not None:
                raise ValueError(fault)
            if not isinstance(record, dict):
                raise ValueError("no table of names and values")
            missing = [key for key in needs if key not in record]
            if missing:
                raise ValueError(f"no {missing[0]!r}")
            check(record)
        except (ValueError, RecursionError, UserError) as error:
            complaints.append(f"{path} line {number} is unreadable and left out ({error}).")
            continue
        records.append(record)
    return records, complaints


def put_back(path: Path, text: str) -> str | None:
    """Make a file hold exactly a text.

    Lines after the text are those of a process that was killed, and go without a word.

    Args:
        path: a file of JSON lines, or missing.
        text: what it should hold.

    Returns:
        One sentence if the file was missing or did not begin with the text, else None.
    """
    wanted = text.encode()
    present = path.read_bytes() if path.exists() else None
    if (present or b"") != wanted:
        write_text(path, text)
    if (present or b"").startswith(wanted):
        return None
    what = "was missing" if present is None else "was damaged"
    lines = text.count("\n")
    return f"{path} {what}: its {lines} lines were put back as the checkpoint knows them."
