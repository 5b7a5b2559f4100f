"""The file behind a host cache: made whole or not at all, never left behind."""

import fcntl
import mmap
import os
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import ExhaustedError, InvalidInputError, TransferError, UnavailableError
from foremoe.transfer.slab import SLAB_ALIGNMENT, align

MAGIC = b"FOREMOEC"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQQQ")  # magic, version, ranks, layers, capacity, slab, file bytes
_PREFIX = "foremoe-cache-"
_POLL_SECONDS = 0.005
LOCK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a cache file holds; ``capacity`` experts of ``slab_bytes`` for each of ``layers``."""

    local_ranks: int
    layers: tuple[int, ...]
    capacity: int
    slab_bytes: int

    @property
    def entries(self) -> int:
        return len(self.layers) * self.capacity

    @property
    def progress_offset(self) -> int:
        """int64 for each local rank."""
        return align(_HEADER.size + 8 * len(self.layers), 64)

    @property
    def record_offset(self) -> int:
        """int64 (generation, expert) for each entry."""
        return align(self.progress_offset + 8 * self.local_ranks, 64)

    @property
    def slab_offset(self) -> int:
        return align(self.record_offset + 16 * self.entries, SLAB_ALIGNMENT)

    @property
    def file_bytes(self) -> int:
        return self.slab_offset + self.entries * self.slab_bytes

    def header(self) -> bytes:
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            self.local_ranks,
            len(self.layers),
            self.capacity,
            self.slab_bytes,
            self.file_bytes,
        )
        return head + np.asarray(self.layers, "<i8").tobytes()


class CacheFile:
    """A mapped cache file. The lock it holds tells others that a living process uses it."""

    def __init__(self, descriptor: int, path: Path, shape: CacheShape) -> None:
        """Use ``create_file`` or ``open_file``."""
        self.path = path
        self.shape = shape
        self._descriptor = descriptor
        # np.frombuffer keeps the mapping alive as long as any view; torch.frombuffer would not.
        mapping = mmap.mmap(descriptor, shape.file_bytes)
        self.raw: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)

    @contextmanager
    def turn(self, wait_seconds: float) -> Iterator[None]:
        """Only one process at a time is inside. Raises TransferError at the deadline.

        The lock is a record lock, apart from the one that says that the file is in use.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise TransferError(
                        f"host cache: another rank held its turn for {wait_seconds} s"
                    ) from None
                time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def unlink(self) -> None:
        """Remove the name; the memory lives until the last process lets go of it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go; the mapping ends with the last view of ``raw``."""
        self.raw = np.zeros(0, np.uint8)
        os.close(self._descriptor)


def create_file(directory: Path, shape: CacheShape, limit_bytes: int | None) -> CacheFile:
    """Make and map a zeroed file in ``directory``; all of its memory is reserved now.

    Raises ExhaustedError when ``limit_bytes`` or the free space does not suffice, UnavailableError
    when the directory cannot be used. Nothing is left behind then.
    """
    size = shape.file_bytes
    if limit_bytes is not None and size > limit_bytes:
        raise ExhaustedError(
            f"host cache: needs {size} bytes but its limit is {limit_bytes}; raise the limit or "
            "run without the host path"
        )
    with _locked_directory(directory):
        _remove_abandoned(directory)
        path = directory / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns():x}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(directory, error) from error
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        # ftruncate alone would promise pages that tmpfs does not have: SIGBUS on first touch.
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        path.unlink()
        os.close(descriptor)
        raise ExhaustedError(
            f"host cache: needs {size} bytes in {directory}, {shutil.disk_usage(directory).free} "
            f"are free ({error.strerror}); enlarge the tmpfs, name another directory, or run "
            "without the host path"
        ) from error
    try:
        os.pwrite(descriptor, shape.header(), 0)
        crash_point(CrashPoint.CACHE_CREATED)
        return CacheFile(descriptor, path, shape)
    except OSError as error:
        path.unlink()
        os.close(descriptor)
        raise ExhaustedError(f"host cache: cannot map {size} bytes: {error.strerror}") from error


def open_file(path: Path, layers: Sequence[int], capacity: int, slab_bytes: int) -> CacheFile:
    """Map a file another process made.

    Raises InvalidInputError when it is no cache file of these sizes, UnavailableError when it
    cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UnavailableError(f"host cache: cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        shape = _read_shape(descriptor, path)
        expected = CacheShape(shape.local_ranks, tuple(layers), capacity, slab_bytes)
        if shape != expected:
            raise InvalidInputError(f"host cache: {path} holds {shape}, expected {expected}")
        crash_point(CrashPoint.CACHE_ATTACHED)
        return CacheFile(descriptor, path, shape)
    except InvalidInputError:
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError(f"host cache: cannot map {path}: {error.strerror}") from error


def _read_shape(descriptor: int, path: Path) -> CacheShape:
    head = os.pread(descriptor, _HEADER.size, 0)
    if len(head) < _HEADER.size or head[: len(MAGIC)] != MAGIC:
        raise InvalidInputError(f"host cache: {path} is not a host cache file")
    _, version, ranks, layer_count, capacity, slab_bytes, size = _HEADER.unpack(head)
    if version != VERSION:
        raise InvalidInputError(
            f"host cache: {path} has format version {version}, this program reads {VERSION}"
        )
    found = os.fstat(descriptor).st_size
    if found < _HEADER.size + 8 * layer_count:
        raise InvalidInputError(f"host cache: {path} is cut off")
    layers = os.pread(descriptor, 8 * layer_count, _HEADER.size)
    shape = CacheShape(ranks, tuple(np.frombuffer(layers, "<i8").tolist()), capacity, slab_bytes)
    if not found == size == shape.file_bytes:
        raise InvalidInputError(f"host cache: {path} has {found} bytes, its header says {size}")
    return shape


@contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    """Keep others from creating or removing cache files in ``directory`` meanwhile."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    """Anybody who can read the directory can hold its lock, so do not wait for ever."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise _unusable(directory, error) from error
        time.sleep(_POLL_SECONDS)


def _unusable(directory: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"host cache: cannot use {directory}: {error.strerror}; name a directory on a tmpfs"
    )


def _remove_abandoned(directory: Path) -> None:
    """Remove files that no living process holds: theirs were killed before the unlink."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:
            continue
        finally:
            os.close(descriptor)
