"""A file while it arrives: written in order, locked against others, gone when it is given up. Knows no asset."""

import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

from server.assets.faults import LibraryFull, NoSuchAsset, UploadRunning

_PIECE = 2**20  # bytes read at once for hashing
# No room on the disk, none in a quota, none that a file of this process may take.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Closed(Exception):
    """The file was given back while somebody meant to write it."""


class Partial:
    """One file, open and locked until `close`; any thread may write, one after the other."""

    def __init__(self, path: Path) -> None:
        """Raises `UploadRunning`, also where another process has it, `LibraryFull`, `OSError`."""
        self.path = path
        self._turn = threading.Lock()
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_room(error) or error from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UploadRunning("its bytes are being sent or looked at already; retry when that has ended") from None
        self.size = os.fstat(self._file).st_size

    def cut(self, size: int) -> None:
        """Forget what is behind."""
        with self._turn:
            os.ftruncate(self._open(), size)
            self.size = size

    def write(self, content: bytes) -> None:
        """Put it at the end. Raises `LibraryFull`; `NoSuchAsset` once the file was removed, here or elsewhere."""
        with self._turn:
            file, left = self._open(), memoryview(content)
            if os.fstat(file).st_nlink == 0:
                raise NoSuchAsset(self.path.name)
            while left:
                try:
                    written = os.pwrite(file, left, self.size)
                except OSError as error:
                    raise no_room(error) or error from error
                self.size += written
                left = left[written:]

    def settle(self) -> None:
        """See to it that the bytes outlive a power cut. Raises `LibraryFull`."""
        with self._turn:
            try:
                os.fsync(self._open())
            except OSError as error:
                raise no_room(error) or error from error

    def close(self) -> None:
        """Let others have it; the file stays."""
        with self._turn:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _open(self) -> int:
        if self._file is None:
            raise Closed
        return self._file


def sha256_of(path: Path) -> str:
    """Of a whole file, which is never in memory."""
    with path.open("rb", buffering=0) as file:
        digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
        while read := file.readinto(piece):
            digest.update(piece[:read])
    return digest.hexdigest()


def is_held(path: Path) -> bool:
    """Whether somebody is writing it; what is not there is held by nobody, and is not made by the question."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def no_room(error: OSError) -> LibraryFull | None:
    """The fault that this error is, if it is that one."""
    if error.errno not in _NO_ROOM:
        return None
    return LibraryFull("the disk of the asset library is full; delete assets, or ask who runs this service for more")
