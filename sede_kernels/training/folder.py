"""A run's folder: what belongs to a run in it, and when a new run may begin there."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sede_kernels.training import changes, checkpoint
from sede_kernels.training.files import UserError, remove_leftovers
from sede_kernels.training.lock import hold

RESULTS = ("metrics.jsonl", "best.pt", "test.json", changes.FILE)  # of a run that went on
FILES = ("config.json", "vocab.json", "last.pt", *RESULTS)
_CURVES = "tensorboard"


@contextmanager
def guard(out: Path, task: str) -> Iterator[None]:
    """Hold a run's folder, without what a killed process was writing in it.

    Args:
        out: the folder.
        task: the command, for the message of whoever comes second.

    Raises:
        UserError: another process holds it.
    """
    with hold(out, task):
        left = remove_leftovers(out, *FILES)
        if left:
            names = ", ".join(path.name for path in left)
            print(f"Removed from {out} what a killed process was writing: {names}", file=sys.stderr)
        yield


def check_name(out: Path) -> None:
    """Refuse a folder whose name is no UTF-8: tensorboard cannot write its curves there.

    Raises:
        UserError: with the name.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of the folder {str(out)!r} is not UTF-8: choose another --out."
        ) from error


def make_room(out: Path) -> None:
    """Check that a run can begin in a folder.

    A run that was killed before it had learned anything is removed: its settings may be why.

    Raises:
        UserError: the folder holds a run.
    """
    if (out / "config.json").exists():
        if not _learned_nothing(out):
            raise UserError(
                f"{out} holds a run already: continue it with "
                f"`sede train --resume {shlex.quote(str(out))}`, or choose another --out."
            )
        remove(out)
    for name in RESULTS:
        if (out / name).exists():
            raise UserError(
                f"{out} holds {name} of a run without its config.json: choose another --out, or "
                "move that run away."
            )


def remove(out: Path) -> None:
    """Delete the files of a run, and nothing else in its folder."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    curves = out / _CURVES
    if curves.is_dir() and not curves.is_symlink():
        for file in curves.glob("events.out.tfevents.*"):
            file.unlink()
        with suppress(OSError):  # not empty
            curves.rmdir()


def empty(out: Path) -> None:
    """Delete all that is in a folder, but for the lock."""
    for entry in out.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _learned_nothing(out: Path) -> bool:
    """Whether a run stands where it began: no epoch, and a checkpoint of step 0 or none."""
    if any((out / name).exists() for name in RESULTS):
        return False
    if not (out / "last.pt").exists():
        return True
    try:
        place = checkpoint.load(out / "last.pt", ("place",))["place"]
    except UserError:
        return False
    return bool(place == [0, 0, 0])
