"""What a slab holds, written into its last bytes so that a mix-up shows before it is computed with.

The stamp is the slab's canary: it travels with the bytes from the host cache, and the receiver of a
peer copy writes it when all of them have come. In checksum mode it also carries the CRC-32 that the
expert's home reckoned over its weights.
"""

import struct
from typing import NamedTuple

import torch
from torch import Tensor

STAMP_BYTES = 64
_STAMP = struct.Struct("<8sqqqI")
_MAGIC = b"FOREMOE\0"


class Content(NamedTuple):
    """One expert's weights as of one generation."""

    layer: int
    expert: int
    generation: int

    def __str__(self) -> str:
        return f"layer {self.layer} expert {self.expert} generation {self.generation}"


def write_stamp(slab: Tensor, content: Content, checksum: int = 0) -> None:
    """Say that ``slab`` (uint8) holds ``content``."""
    stamp = (_MAGIC, content.layer, content.expert, content.generation, checksum)
    if slab.device.type == "cpu":
        _STAMP.pack_into(slab.numpy().data, slab.nbytes - STAMP_BYTES, *stamp)
    else:
        written = torch.frombuffer(bytearray(_STAMP.pack(*stamp)), dtype=torch.uint8)
        slab[-STAMP_BYTES:][: _STAMP.size].copy_(written)


def erase_stamp(slab: Tensor) -> None:
    """Say that ``slab`` holds nothing that may be used."""
    slab[-STAMP_BYTES:].zero_()


def read_stamp(slab: Tensor) -> tuple[Content | None, int]:
    """What ``slab`` says it holds, None for nothing, and the checksum (0 if there is none)."""
    stamp = slab[-STAMP_BYTES:].cpu().numpy().data
    magic, layer, expert, generation, checksum = _STAMP.unpack_from(stamp)
    return (Content(layer, expert, generation) if magic == _MAGIC else None), checksum
