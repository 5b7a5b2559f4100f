"""The host cache: one copy of a node's experts in shared memory, mapped by every rank there."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import InvalidInputError, StaleGenerationError, TransferError
from foremoe.transfer.cache_file import CacheFile, CacheShape, create_file, open_file
from foremoe.transfer.content import Content, write_stamp
from foremoe.transfer.slab import SlabLayout

_WRITING = -1
_POLL_SECONDS = 0.0005


class HostExpertCache:
    """Slabs in tmpfs, each with the generation of its weights.

    One rank of a node creates it, the others attach, then the creator unlinks the name: from then
    on the memory lives exactly as long as a process maps it, however that process ends. A file
    whose processes died before the unlink is removed by the next ``create`` in the directory.

    An expert is written by its home only and read by the other ranks of the node. Readers compare
    the generation before and after copying, so a torn read is an error.
    """

    def __init__(self, file: CacheFile, layout: SlabLayout) -> None:
        """Use ``create`` or ``attach``."""
        shape = file.shape
        self.layout = layout
        self.layers = shape.layers
        self.local_ranks = shape.local_ranks
        self.capacity = shape.capacity
        self._file = file
        self._row = {layer: row for row, layer in enumerate(shape.layers)}
        progress = file.raw[shape.progress_offset :][: 8 * shape.local_ranks]
        records = file.raw[shape.record_offset :][: 16 * shape.entries]
        slabs = file.raw[shape.slab_offset :]
        self._progress = progress.view(np.int64)
        self._records = records.view(np.int64).reshape(len(shape.layers), shape.capacity, 2)
        self._slabs = slabs.reshape(len(shape.layers), shape.capacity, shape.slab_bytes)
        self._entry: dict[tuple[int, int], int] = {}
        self.serve([range(shape.capacity)] * len(shape.layers))

    @classmethod
    def create(
        cls,
        directory: str | Path,
        layers: Sequence[int],
        capacity: int,
        layout: SlabLayout,
        local_ranks: int,
        limit_bytes: int | None = None,
    ) -> "HostExpertCache":
        """Make the file in ``directory``, which should be a tmpfs, for ``local_ranks`` ranks.

        layers: global layer ids. capacity: experts per layer whose home is this node.

        Raises ExhaustedError when ``limit_bytes`` or the directory's free space does not suffice,
        UnavailableError when the directory cannot be used.
        """
        shape = CacheShape(local_ranks, tuple(layers), capacity, layout.nbytes)
        return cls(create_file(Path(directory), shape, limit_bytes), layout)

    @classmethod
    def attach(
        cls, path: str | Path, layers: Sequence[int], capacity: int, layout: SlabLayout
    ) -> "HostExpertCache":
        """Map a file that another rank of this node created with the same arguments.

        Raises InvalidInputError when it is not such a file, UnavailableError when it is gone.
        """
        return cls(open_file(Path(path), layers, capacity, layout.nbytes), layout)

    @property
    def path(self) -> Path:
        """What the other ranks attach to."""
        return self._file.path

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._file.shape.file_bytes

    def unlink(self) -> None:
        """Remove the name, once every rank of the node has attached."""
        self._file.unlink()

    def close(self) -> None:
        """Let go of the memory; a tensor that views it keeps it until it is gone."""
        self._progress, self._records = self._progress[:0].copy(), self._records[:0].copy()
        self._slabs = np.empty((0, 0, 0), np.uint8)
        self._file.close()

    def serve(self, experts: Sequence[Sequence[int]]) -> None:
        """From now on hold ``experts[l]`` of the l-th layer; all ranks of the node call this alike.

        At first the cache holds experts 0 to ``capacity`` - 1. Raises InvalidInputError when there
        are more than ``capacity``.
        """
        if any(len(row) > self.capacity for row in experts):
            raise InvalidInputError(
                f"host cache: {max(map(len, experts))} experts of a layer live on this node, it "
                f"was made for {self.capacity}"
            )
        self._entry = {
            (layer, expert): entry
            for layer, row in zip(self.layers, experts, strict=True)
            for entry, expert in enumerate(row)
        }

    def write(
        self,
        layer: int,
        expert: int,
        tensors: Mapping[str, Tensor],
        generation: int,
        checksum: int = 0,
    ) -> None:
        """Publish an expert's weights. Only its home rank may call this.

        checksum: of the tensors, for readers in checksum mode.

        Raises InvalidInputError when the tensors do not fit the layout.
        """
        self.layout.check(tensors)
        row, entry = self._place(layer, expert)
        self._records[row, entry] = (_WRITING, expert)
        slab = torch.from_numpy(self._slabs[row, entry])
        self.layout.pack(tensors, slab)
        crash_point(CrashPoint.CACHE_WRITING)
        write_stamp(slab, Content(layer, expert, generation), checksum)
        self._records[row, entry, 0] = generation
        crash_point(CrashPoint.CACHE_WRITTEN)

    def publish(
        self,
        local_rank: int,
        on_node: NDArray[np.bool_],
        own: Mapping[tuple[int, int], Mapping[str, Tensor]],
        generation: int,
        checksums: bool,
        wait_seconds: float,
    ) -> None:
        """Write ``own`` experts once nobody reads; return once all of the node's are there.

        on_node: bool ``[L, E]``, the experts to hold from now on, as for ``serve``.

        Raises as ``serve``, ``write`` and ``meet``.
        """
        self.meet(local_rank, 2 * generation, wait_seconds)
        self.serve([np.flatnonzero(row).tolist() for row in on_node])
        for (layer, expert), tensors in own.items():
            checksum = self.layout.checksum(tensors) if checksums else 0
            self.write(layer, expert, tensors, generation, checksum)
        self.meet(local_rank, 2 * generation + 1, wait_seconds)

    def read(
        self, layer: int, expert: int, generation: int, out: NDArray[np.uint8], first: int = 0
    ) -> None:
        """Copy an expert's slab into ``out``, or the part of it from byte ``first`` on.

        Raises StaleGenerationError when the cache holds another generation (or another expert)
        before or after the copy; ``out`` is then undefined.
        """
        self.check(layer, expert, generation)
        part = self._slabs[self._place(layer, expert)][first : first + out.size]
        np.copyto(out, part)  # a fifth faster than torch's ``copy_`` of the same bytes
        self.check(layer, expert, generation)

    def check(self, layer: int, expert: int, generation: int) -> None:
        """Raise StaleGenerationError unless the cache holds this generation of the expert now."""
        row, entry = self._place(layer, expert)
        found, found_expert = self._records[row, entry].tolist()
        if found == _WRITING:
            held = "is being written"
        elif (found, found_expert) != (generation, expert):
            held = f"holds generation {found} (expert {found_expert})"
        else:
            return
        raise StaleGenerationError(
            f"host cache: layer {layer} expert {expert} {held}, generation {generation} was asked "
            "for"
        )

    def slab(self, layer: int, expert: int) -> Tensor:
        """The expert's slab in shared memory, uint8; what it holds may change at any time."""
        return torch.from_numpy(self._slabs[self._place(layer, expert)])

    @property
    def slabs(self) -> Tensor:
        """All slabs one after the other, uint8; they start on a page."""
        return torch.from_numpy(self._slabs.reshape(-1))

    def turn(self, wait_seconds: float) -> AbstractContextManager[None]:
        """What the node's ranks must do one at a time; see ``CacheFile.turn``."""
        return self._file.turn(wait_seconds)

    def meet(self, local_rank: int, progress: int, wait_seconds: float) -> None:
        """Come to ``progress``, which only grows, and wait until every rank of the node has.

        Raises TransferError naming the ranks that did not within ``wait_seconds``.
        """
        self._progress[local_rank] = progress
        deadline = time.monotonic() + wait_seconds
        while bool((self._progress < progress).any()):
            if time.monotonic() > deadline:
                late = np.flatnonzero(self._progress < progress).tolist()
                raise TransferError(
                    f"host cache: local ranks {late} did not follow within {wait_seconds} s"
                )
            time.sleep(_POLL_SECONDS)

    def _place(self, layer: int, expert: int) -> tuple[int, int]:
        entry = self._entry.get((layer, expert))
        if entry is None:
            raise InvalidInputError(
                f"host cache: layer {layer} expert {expert} is not on this node"
            )
        return self._row[layer], entry
