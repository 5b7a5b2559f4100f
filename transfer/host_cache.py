"""The host cache: one copy of a node's experts in shared memory, mapped by every rank there."""

import fcntl
import mmap
import os
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foremoe.errors import (
    ExhaustedError,
    InvalidInputError,
    StaleGenerationError,
    TransferError,
    UnavailableError,
)
from foremoe.transfer.slab import SLAB_ALIGNMENT, SlabLayout, align

MAGIC = b"FOREMOEC"
VERSION = 1
WRITING = -1
_HEADER = struct.Struct(
    "<8sIIQQQQ"
)  # magic, version, ranks, layers, experts, slab bytes, file bytes
_PREFIX = "foremoe-cache-"
_POLL_SECONDS = 0.0005


class HostExpertCache:
    """A tmpfs file of slabs with a generation for each (layer, expert).

    One rank of a node creates it, the others attach, then the creator unlinks the name: from then
    on the memory lives exactly as long as a process maps it, however that process ends. A file
    whose processes died before the unlink is removed by the next ``create`` in the directory.
    """

    def __init__(self, file: int, path: Path, layers: Sequence[int], layout: SlabLayout) -> None:
        """Use ``create`` or ``attach``."""
        self.path = path
        self.layout = layout
        self.layers = tuple(layers)
        self._file = file
        mapping = mmap.mmap(file, os.fstat(file).st_size)
        # np.frombuffer keeps the mapping alive as long as any view; torch.frombuffer would not.
        raw = np.frombuffer(mapping, np.uint8)
        _, _, ranks, _, experts, _, _ = _HEADER.unpack_from(mapping)
        self.num_experts = int(experts)
        self._row = {layer: row for row, layer in enumerate(self.layers)}
        progress, generations, slabs = _offsets(ranks, len(self.layers), self.num_experts)
        self._progress = raw[progress : progress + 8 * ranks].view(np.int64)
        count = len(self.layers) * self.num_experts
        self._generations = (
            raw[generations : generations + 8 * count].view(np.int64).reshape(-1, self.num_experts)
        )
        self._slabs = torch.from_numpy(raw)[slabs : slabs + count * layout.nbytes].view(
            len(self.layers), self.num_experts, layout.nbytes
        )

    @classmethod
    def create(
        cls,
        directory: str | Path,
        layers: Sequence[int],
        num_experts: int,
        layout: SlabLayout,
        local_ranks: int,
        limit_bytes: int | None = None,
    ) -> "HostExpertCache":
        """Make the file in ``directory`` for the node's ``local_ranks`` ranks; it is unpublished.

        layers: global layer ids. num_experts: E, experts of a layer.

        Raises ExhaustedError when ``limit_bytes`` or the directory's free space does not suffice,
        UnavailableError when the directory cannot be used.
        """
        size = cache_bytes(local_ranks, len(layers), num_experts, layout)
        if limit_bytes is not None and size > limit_bytes:
            raise ExhaustedError(
                f"host cache: needs {size} bytes but its limit is {limit_bytes}; "
                "raise the limit or run without the host path"
            )
        with _locked_directory(Path(directory)) as folder:
            _remove_abandoned(folder)
            path = folder / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns():x}"
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_SH)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            path.unlink()
            os.close(file)
            raise ExhaustedError(
                f"host cache: needs {size} bytes in {folder}, {shutil.disk_usage(folder).free} are "
                f"free ({error.strerror}); enlarge the tmpfs, name another directory, or run "
                "without the host path"
            ) from error
        head = _HEADER.pack(
            MAGIC, VERSION, local_ranks, len(layers), num_experts, layout.nbytes, size
        )
        os.pwrite(file, head + np.asarray(layers, "<i8").tobytes(), 0)
        return cls(file, path, layers, layout)

    @classmethod
    def attach(
        cls, path: str | Path, layers: Sequence[int], num_experts: int, layout: SlabLayout
    ) -> "HostExpertCache":
        """Map a file that another rank of this node created with the same arguments.

        Raises InvalidInputError when it is not such a file, UnavailableError when it is gone.
        """
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"host cache: cannot open {path}: {error.strerror}") from error
        try:
            _check_header(file, Path(path), layers, num_experts, layout)
            fcntl.flock(file, fcntl.LOCK_SH)
        except InvalidInputError:
            os.close(file)
            raise
        return cls(file, Path(path), layers, layout)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._file).st_size

    def unlink(self) -> None:
        """Remove the name, once every rank of the node has attached."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last tensor that views it is gone."""
        os.close(self._file)
        empty = np.zeros(0, np.int64)
        self._progress, self._generations = empty, empty.reshape(0, 1)
        self._slabs = torch.empty(0, 1, 0, dtype=torch.uint8)

    def write(
        self, layer: int, expert: int, tensors: Mapping[str, Tensor], generation: int
    ) -> None:
        """Publish an expert's weights. Only its home rank may call this.

        Raises InvalidInputError when the tensors do not fit the layout.
        """
        self.layout.check(tensors)
        row = self._row[layer]
        self._generations[row, expert] = WRITING
        self.layout.pack(tensors, self._slabs[row, expert])
        self._generations[row, expert] = generation

    def read(self, layer: int, expert: int, generation: int, out: Tensor) -> None:
        """Copy an expert's slab into ``out`` (uint8 ``[layout.nbytes]``).

        Raises StaleGenerationError when the cache holds another generation before or after the
        copy; ``out`` is then undefined.
        """
        row = self._row[layer]
        self._check_generation(layer, expert, generation)
        out.copy_(self._slabs[row, expert])
        self._check_generation(layer, expert, generation)

    def announce(self, local_rank: int, progress: int) -> None:
        """Tell the node's other ranks how far this one is; ``progress`` only grows."""
        self._progress[local_rank] = progress

    def wait_for_all(self, progress: int, wait_seconds: float) -> None:
        """Wait until every rank of the node has announced ``progress``.

        Raises TransferError naming the ranks that did not within ``wait_seconds``.
        """
        deadline = time.monotonic() + wait_seconds
        while bool((self._progress < progress).any()):
            if time.monotonic() > deadline:
                late = np.flatnonzero(self._progress < progress).tolist()
                raise TransferError(
                    f"host cache: local ranks {late} did not follow within {wait_seconds} s"
                )
            time.sleep(_POLL_SECONDS)

    def _check_generation(self, layer: int, expert: int, generation: int) -> None:
        found = int(self._generations[self._row[layer], expert])
        if found != generation:
            held = "is being written" if found == WRITING else f"holds generation {found}"
            raise StaleGenerationError(
                f"host cache: layer {layer} expert {expert} {held}, generation {generation} "
                "was asked for"
            )


def cache_bytes(ranks: int, layers: int, num_experts: int, layout: SlabLayout) -> int:
    """Size of the file, in bytes."""
    return _offsets(ranks, layers, num_experts)[2] + layers * num_experts * layout.nbytes


def _offsets(ranks: int, layers: int, experts: int) -> tuple[int, int, int]:
    """Byte offsets of the ranks' progress, of the generations and of the slabs."""
    progress = align(_HEADER.size + 8 * layers, 64)
    generations = align(progress + 8 * ranks, 64)
    return progress, generations, align(generations + 8 * layers * experts, SLAB_ALIGNMENT)


def _check_header(
    file: int, path: Path, layers: Sequence[int], num_experts: int, layout: SlabLayout
) -> None:
    head = os.pread(file, _HEADER.size, 0)
    if len(head) < _HEADER.size or head[: len(MAGIC)] != MAGIC:
        raise InvalidInputError(f"host cache: {path} is not a host cache file")
    _, version, ranks, layer_count, experts, slab_bytes, size = _HEADER.unpack(head)
    if version != VERSION:
        raise InvalidInputError(
            f"host cache: {path} has format version {version}, this program reads {VERSION}"
        )
    ids: NDArray[np.int64] = np.frombuffer(os.pread(file, 8 * layer_count, _HEADER.size), "<i8")
    found = (ids.tolist(), experts, slab_bytes)
    expected = (list(layers), num_experts, layout.nbytes)
    if found != expected:
        raise InvalidInputError(
            f"host cache: {path} holds (layers, experts, slab bytes) {found}, expected {expected}"
        )
    if os.fstat(file).st_size != size or size != cache_bytes(ranks, len(layers), experts, layout):
        raise InvalidInputError(
            f"host cache: {path} has {os.fstat(file).st_size} bytes, its header says {size}"
        )


@contextmanager
def _locked_directory(directory: Path) -> Iterator[Path]:
    """Keep others from creating or removing cache files in ``directory`` meanwhile."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(
            f"host cache: cannot use {directory}: {error.strerror}; name a directory on a tmpfs"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(file)


def _remove_abandoned(directory: Path) -> None:
    """Remove files that no living process holds: their ranks were killed before the unlink."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:
            continue
        finally:
            os.close(file)
