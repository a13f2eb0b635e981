"""A run that a crash, a hang or a lost GPU ended goes on in another process, where it stopped."""

import faulthandler
import json
import sys
from pathlib import Path

import torch

from sede_kernels.whole_file import write_text

from . import records
from .case import Case


class DeviceLostError(RuntimeError):
    """The GPU answers no more in this process: an error of a kernel stays until it ends."""


def is_lost(device: torch.device) -> bool:
    """Whether the device is a GPU that answers no more."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _key(case: Case) -> tuple[object, ...]:
    """As ``records.case_key``."""
    return (case.op, case.mode, case.dtype, tuple(case.sizes.items()))


class Progress:
    """What a run has done, by its records, and what it is at, by a file that ends with the run.

    Args:
        out: the file of records.
        run: id of the run, where the file does not name the one that it belongs to.
        place: the file; None where nothing is kept.
        patience_s: seconds of one variant's first call, or of the timing of a case, after which
            the process ends with the place where it hangs; None for any time.

    Attributes:
        run: id of the run.
        broken: title of the case and name of the variant (or "") in which the last process ended.
    """

    def __init__(
        self, out: Path, run: str, place: Path | None = None, patience_s: float | None = None
    ) -> None:
        self.run, self.broken = run, ("", "")
        self._place, self._patience_s = place, patience_s
        self._done: dict[tuple[object, ...], set[str]] = {}
        if place is None or not place.exists():
            return
        self.run, *broken = json.loads(place.read_text())
        self.broken = (broken[0], broken[1])
        for record in records.read([out])[0] if out.exists() else ():
            if record["run"] == self.run:
                key = records.case_key(record)
                self._done.setdefault(key, set()).add(record["implementation"])

    def done(self, case: Case) -> set[str]:
        """The implementations that have a record of this case and run."""
        return self._done.get(_key(case), set())

    def leave_out(self, case: Case, names: set[str]) -> None:
        """These have a record now."""
        self._done.setdefault(_key(case), set()).update(names)

    def at(self, case: Case, name: str = "") -> None:
        """Say what comes next: the first call of a variant, or what all of them share."""
        self._note(case.title, name)
        if self._patience_s is not None:
            faulthandler.dump_traceback_later(self._patience_s, exit=True, file=sys.__stderr__)

    def between(self) -> None:
        """The case is written."""
        self._note("", "")
        if self._patience_s is not None:
            faulthandler.cancel_dump_traceback_later()

    def end(self) -> None:
        """The run is over: no other process need go on."""
        if self._patience_s is not None:
            faulthandler.cancel_dump_traceback_later()
        if self._place is not None:
            self._place.unlink(missing_ok=True)

    def _note(self, title: str, name: str) -> None:
        if self._place is not None:
            write_text(self._place, json.dumps([self.run, title, name]))
