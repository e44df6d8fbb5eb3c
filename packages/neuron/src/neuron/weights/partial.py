"""A file that is being downloaded: where it stands, and whether it is what was promised."""

import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec

_CHUNK_BYTES = 8 << 20
"""Read at once of what an earlier attempt left."""


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file on the hub."""

    path: str
    size: int
    blob: str
    """Its name in `blobs`, and its sum: SHA-256 of large files, git's SHA-1 of others."""
    is_large: bool

    def hasher(self) -> Any:
        """Return what its sum is made with."""
        if self.is_large:
            return hashlib.sha256()
        # git's object format: `git hash-object`, git-scm.com/book, "Git Objects".
        return hashlib.sha1(b"blob %d\x00" % self.size, usedforsecurity=False)


class Partial(io.RawIOBase):
    """A file that goes on where an earlier download ended, counts and hashes; write-only.

    Args:
        path: need not exist.
        file: what it is to become.
        on_bytes: told of every change of its size; what is there at first is not told.
    """

    def __init__(self, path: pathlib.Path, file: RemoteFile, on_bytes: Callable[[int], None]):
        super().__init__()
        self._remote = file
        self._on_bytes = on_bytes
        self._file = path.open("a+b", buffering=0)
        self._hash = file.hasher()
        self.size = 0
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)

    def write(self, chunk: Any) -> int:
        """Append."""
        # A file without a buffer may take less than it is given.
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(chunk)
        self.size += len(chunk)
        self._on_bytes(len(chunk))
        return len(chunk)

    def tell(self) -> int:
        """Return its size, which is where the next byte goes."""
        return self.size

    def seek(self, position: int, whence: int = 0) -> int:
        """Go back to the beginning, which a hub that does not go on in the middle asks for."""
        if position != 0 or whence != 0:
            raise io.UnsupportedOperation("only the beginning can be gone back to")
        self.restart()
        return 0

    def truncate(self, size: int | None = None) -> int:
        """Return its size: going back has emptied it."""
        return self.size

    def restart(self) -> None:
        """Forget what came."""
        self._file.truncate(0)
        self._on_bytes(-self.size)
        self.size = 0
        self._hash = self._remote.hasher()

    def finish(self) -> bool:
        """Have it on the disk, and say whether it is what the hub promised."""
        os.fsync(self._file.fileno())
        return self.size == self._remote.size and self._hash.hexdigest() == self._remote.blob

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()
