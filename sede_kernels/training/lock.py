"""One process a folder: a lock that ends with the process that holds it, however it ends."""

import errno
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sede_kernels.training.files import UserError

NAME = ".lock"
# File systems that know no locks: a run there is as unguarded as without this file.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_POLL_S = 0.05
_ATTEMPTS = 20  # at making a folder that others remove


@contextmanager
def hold(folder: Path, task: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Keep a folder for this process.

    The lock is ``flock`` on the file ``.lock`` in the folder: the system lets go of it when the
    process ends, after SIGKILL too. The file goes with the lock; one that a kill left behind locks
    nothing. Folders made for it are removed again if they stay empty.

    Args:
        folder: made where it is missing.
        task: the command, for the message of whoever comes second.
        wait_s: how long to wait for another process to let go.

    Raises:
        UserError: another process holds the folder; the message names it.
        OSError: the folder cannot be made or written to.
    """
    made = _missing(folder)
    try:
        descriptor = _acquire(folder, task, time.monotonic() + wait_s)
        try:
            yield
        finally:
            with suppress(OSError):
                os.unlink(folder / NAME)
            os.close(descriptor)
    finally:
        for path in made:
            with suppress(OSError):  # not empty: somebody uses it
                path.rmdir()


def _missing(folder: Path) -> list[Path]:
    """A folder and those above it that are not there, the deepest first."""
    missing = []
    path = folder
    while not path.exists() and path != path.parent:
        missing.append(path)
        path = path.parent
    return missing


def _acquire(folder: Path, task: str, deadline: float) -> int:
    """A descriptor of the locked file."""
    path = folder / NAME
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    attempts = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            continue  # whoever made the folder removed it again, since that start failed
        try:
            locked = _try_lock(descriptor, folder)
            if locked and _is_at(descriptor, path):
                break
            if not locked and time.monotonic() >= deadline:
                holder = os.read(descriptor, 400).decode(errors="replace").strip()
                raise UserError(
                    f"{folder} is in use by {holder or 'another process'}: wait until that ends, "
                    "or choose another folder."
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:
            time.sleep(_POLL_S)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"`{task}` (process {os.getpid()} on {socket.gethostname()})\n".encode())
    return descriptor


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Whether nobody else has the lock; where the system knows none, that is taken for granted."""
    if importlib.util.find_spec("fcntl") is None:
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        print(f"{folder}: no locks on this file system; start one run only.", file=sys.stderr)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the locked file still has its name: its last holder may have removed it before."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
