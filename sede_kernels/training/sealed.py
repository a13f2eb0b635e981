"""A checksum inside a ``torch.save`` file, so that a flipped bit is noticed when it is read.

The file is a zip archive. Its comment takes the SHA-256 of all bytes before the digest, so that the
file and its checksum appear together, and ``torch.load`` reads it as ever.
"""

import hashlib
import io
import struct
import zipfile
from pathlib import Path

_MARK = b"sede-kernels sha256:"
_DIGEST = 64  # hex digits
_END = b"PK\x05\x06"  # of the last record of a zip archive, 22 bytes without a comment


def seal(buffer: io.BytesIO) -> None:
    """Add the checksum to what ``torch.save`` wrote.

    Raises:
        ValueError: the buffer is no zip archive without a comment.
    """
    with buffer.getbuffer() as view:
        if bytes(view[-22:-18]) != _END or bytes(view[-2:]) != b"\0\0":
            raise ValueError("torch.save wrote no zip archive: its checksum has no place.")
        view[-2:] = struct.pack("<H", len(_MARK) + _DIGEST)
    buffer.seek(0, io.SEEK_END)
    buffer.write(_MARK)
    with buffer.getbuffer() as view:
        digest = hashlib.sha256(view).hexdigest()
    buffer.write(digest.encode())


def damage(path: Path) -> str | None:
    """What is wrong with a file of :func:`seal`, or None.

    A file without a checksum, as version 0.1.0 wrote, is judged by the CRC-32 of each zip entry.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - len(_MARK) - _DIGEST))
        tail = file.read()
        if tail.startswith(_MARK):
            file.seek(0)
            digest, left = hashlib.sha256(), size - _DIGEST
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            same = digest.hexdigest().encode() == tail[len(_MARK) :]
            return None if same else "it does not match its checksum"
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.comment:
                    return "its checksum is unreadable"
                entry = archive.testzip()
        except Exception as error:  # of any kind: a flipped bit may ask for a password, or more
            return f"it is cut short or no checkpoint: {str(error).rstrip('.')}"
    return None if entry is None else f"{entry} in it does not match its checksum"
