"""The slab: one expert's tensors packed into one aligned block of bytes."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.transfer.content import STAMP_BYTES

TENSOR_ALIGNMENT = 64
SLAB_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor of shape ``shape`` lies in a slab, in bytes."""

    name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SlabLayout:
    """The same places in the host cache, in every slot and on every rank, so a copy is one move.

    Tensors start at multiples of 64 bytes, ``nbytes`` is a multiple of 4096. The last 64 bytes are
    the stamp (``content.py``).
    """

    dtype: torch.dtype
    places: tuple[TensorPlace, ...]
    nbytes: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> "SlabLayout":
        """Lay the named tensors one after the other, in the order of ``shapes``.

        Raises InvalidInputError when there is no tensor or a tensor is empty.
        """
        places: list[TensorPlace] = []
        end = 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            if count < 1 or min(shape, default=1) < 1:
                raise InvalidInputError(f"slab: tensor {name!r} of shape {shape} has no elements")
            offset = align(end, TENSOR_ALIGNMENT)
            places.append(TensorPlace(name, tuple(shape), offset, count * dtype.itemsize))
            end = offset + count * dtype.itemsize
        if not places:
            raise InvalidInputError("slab: an expert needs at least one tensor")
        return cls(dtype, tuple(places), align(end + STAMP_BYTES, SLAB_ALIGNMENT))

    def with_dtype(self, dtype: torch.dtype) -> "SlabLayout":
        """The same tensors in another dtype."""
        return SlabLayout.from_shapes({place.name: place.shape for place in self.places}, dtype)

    def gradient_layout(self) -> "SlabLayout":
        """Where the gradient is summed: float32, or float64 for float64 weights."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self.with_dtype(wide)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the tensors alone, without padding."""
        return sum(place.nbytes for place in self.places)

    def views(self, slab: Tensor) -> dict[str, Tensor]:
        """The tensors inside ``slab`` (uint8 ``[nbytes]``), sharing its memory."""
        self._check_slab(slab)
        return {
            place.name: slab[place.offset : place.offset + place.nbytes]
            .view(self.dtype)
            .view(place.shape)
            for place in self.places
        }

    def pack(self, tensors: Mapping[str, Tensor], slab: Tensor) -> None:
        """Copy ``tensors`` into ``slab`` (uint8 ``[nbytes]``); its padding and stamp stay.

        Raises InvalidInputError when a tensor is missing, unknown or of another shape or dtype.
        """
        self.check(tensors)
        for name, view in self.views(slab).items():
            view.copy_(tensors[name].detach())

    def checksum(self, tensors: Mapping[str, Tensor]) -> int:
        """CRC-32 of the tensors' bytes in slab order."""
        total = 0
        for place in self.places:
            flat = tensors[place.name].detach().contiguous().view(-1).view(torch.uint8)
            total = zlib.crc32(flat.cpu().numpy().data, total)
        return total

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise InvalidInputError unless ``tensors`` are those of this layout."""
        names = [place.name for place in self.places]
        if set(tensors) != set(names):
            raise InvalidInputError(
                f"slab: expected the tensors {sorted(names)}, got {sorted(tensors)}"
            )
        for place in self.places:
            tensor = tensors[place.name]
            if tuple(tensor.shape) != place.shape or tensor.dtype != self.dtype:
                raise InvalidInputError(
                    f"slab: tensor {place.name!r} must be {self.dtype} {list(place.shape)}, "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )

    def _check_slab(self, slab: Tensor) -> None:
        if slab.dtype != torch.uint8 or tuple(slab.shape) != (self.nbytes,):
            raise InvalidInputError(
                f"slab: expected uint8 [{self.nbytes}], got {slab.dtype} {list(slab.shape)}"
            )


def align(offset: int, alignment: int) -> int:
    """The next multiple of ``alignment`` at or after ``offset``."""
    return -(-offset // alignment) * alignment


def aligned_buffer(nbytes: int, device: torch.device | None = None) -> Tensor:
    """uint8 ``[nbytes]`` of memory of its own that starts on a page; on the CPU by default."""
    raw = torch.empty(nbytes + SLAB_ALIGNMENT, dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % SLAB_ALIGNMENT
    return raw[start : start + nbytes]
