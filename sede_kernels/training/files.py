"""Files that are whole or absent: atomic writes, checksums, and the error a user reads."""

import errno
import fnmatch
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from sede_kernels import whole_file
from sede_kernels.training import sealed
from sede_kernels.whole_file import neighbour

atomic_file = whole_file.atomic_file
write_text = whole_file.write_text

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EFBIG: "the file would pass the size limit of this shell (ulimit -f)",
    getattr(errno, "EDQUOT", -1): "the disk quota is used up",  # not on Windows
}


class UserError(RuntimeError):
    """Something the user can put right; the command line prints the message as one sentence."""


def data_home() -> Path:
    """Folder for prepared sets and caches: ``$SEDE_DATA``, or ``~/.cache/sede``."""
    return Path(os.environ.get("SEDE_DATA") or Path.home() / ".cache" / "sede").expanduser()


def require(packages: Mapping[str, str], purpose: str, extra: str = "train") -> None:
    """Check that packages can be imported, without importing them.

    Args:
        packages: import name -> requirement to install, e.g. ``{"PIL": "pillow"}``.
        purpose: what needs them, for the message.
        extra: of this package, which brings them all.

    Raises:
        UserError: a package is missing; the message has the pip line.
    """
    missing = [pip for name, pip in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{purpose} needs {', '.join(missing)}: run `pip install {' '.join(missing)}` "
            f'(or `pip install "sede-kernels[{extra}]"`).'
        )


def describe_os_error(error: OSError, then: str = "run the same command again") -> str:
    """One sentence for a failed file operation, with what to do next where the disk is full."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        return (
            f"{_FULL[error.errno]}{where}; nothing half written was kept: free some space, "
            f"or set SEDE_DATA or --out to another disk, and {then}."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        if error.filename and os.path.islink(error.filename):
            return f"a link{where} leads to no folder: remove it, or choose another folder."
        return f"a file stands where a folder is expected{where}: choose another folder."
    if error.errno == errno.EISDIR:
        return f"a folder stands where a file is expected{where}: choose another name."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.strerror}{where}: choose another place, or change who may write there."
    return f"{error.strerror or error}{where}."


_LEFT_OVER = re.compile(r"\.(.+)\.[0-9a-f]+\.(?:tmp|old)")


def remove_leftovers(folder: Path, *names: str) -> list[Path]:
    """Delete what killed processes were writing; the caller holds the lock of the folder.

    Args:
        folder: where to look.
        names: patterns of the files' own names, ``last.pt`` or ``*.npz``.

    Returns:
        What was deleted.
    """
    removed = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFT_OVER.fullmatch(entry.name)
        if found is None or not any(fnmatch.fnmatchcase(found[1], name) for name in names):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
        removed.append(entry)
    return removed


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class _Stream:
    """Only ``write``: numpy then reports a full disk by errno, which ``tofile`` loses."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.write = handle.write


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write one ``.npy`` file atomically."""
    with atomic_file(path) as handle:
        np.save(_Stream(handle), array, allow_pickle=False)


def write_torch(path: Path, value: object) -> None:
    """Write a ``torch.save`` file with a checksum, atomically.

    It goes through memory, so that errors keep their errno.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    sealed.seal(buffer)
    with atomic_file(path) as handle:
        handle.write(buffer.getbuffer())


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging, retired = neighbour(path, "tmp"), neighbour(path, "old")
    staging.mkdir()
    try:
        yield staging
        if path.exists():
            os.replace(path, retired)
        try:
            os.replace(staging, path)
        except OSError:
            if retired.exists():
                os.replace(retired, path)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write ``manifest.json``: the facts, and size and sha256 of every file beside it."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {**facts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none.

    Raises:
        UserError: the manifest is not readable JSON with a file list.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        for facts in manifest["files"].values():
            int(facts["bytes"]), str(facts["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: delete {folder} and prepare it again.") from error
    return manifest


def verify_manifest(
    folder: Path, remedy: str, *, only: Callable[[str], bool] = lambda name: True
) -> None:
    """Compare files with the manifest, sizes first; no manifest means nothing to compare.

    Args:
        folder: a prepared folder.
        remedy: what to do about a broken file, the end of the message.
        only: which file names to look at.

    Raises:
        UserError: a file is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    for name, facts in (manifest or {"files": {}})["files"].items():
        if not only(name):
            continue
        file = folder / name
        if not file.exists():
            raise UserError(f"{file} is missing: {remedy}")
        size = file.stat().st_size
        if size != facts["bytes"]:
            raise UserError(
                f"{file} has {size} bytes instead of {facts['bytes']}, it was cut short or "
                f"changed: {remedy}"
            )
        if sha256(file) != facts["sha256"]:
            raise UserError(f"{file} does not match its checksum in manifest.json: {remedy}")
