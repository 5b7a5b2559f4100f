"""Parameters of one rank that another process maps: storages once, experts as places in them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foremoe.transfer.peer_transport import Experts
from foremoe.transfer.slab import SlabLayout


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in one of the shared storages; ``offset`` in elements."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, storages: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The tensor, in storages given as uint8 tensors."""
        return storages[self.storage].view(dtype).as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """Where a rank's experts are: tensors in slab order for each (layer, expert)."""

    places: Mapping[tuple[int, int], tuple[Place, ...]]
    checksums: Mapping[tuple[int, int], int]

    def tensors(
        self, layer: int, expert: int, storages: Sequence[Tensor], dtype: torch.dtype
    ) -> list[Tensor]:
        return [place.of(storages, dtype) for place in self.places[layer, expert]]


def locate(own: Experts, layout: SlabLayout, checksums: bool) -> tuple[SharedExperts, list[Tensor]]:
    """Say where ``own`` experts are, and which storages (whole, as uint8) that takes."""
    numbers: dict[int, int] = {}
    storages: list[Tensor] = []
    places: dict[tuple[int, int], tuple[Place, ...]] = {}
    for key, tensors in own.items():
        found = []
        for name in (place.name for place in layout.places):
            tensor = tensors[name].detach()
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in numbers:
                numbers[storage.data_ptr()] = len(storages)
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
                storages.append(whole.set_(storage))
            found.append(
                Place(
                    numbers[storage.data_ptr()],
                    int(tensor.storage_offset()),
                    tuple(tensor.shape),
                    tuple(tensor.stride()),
                )
            )
        places[key] = tuple(found)
    sums = {key: layout.checksum(tensors) for key, tensors in own.items()} if checksums else {}
    return SharedExperts(places, sums), storages


Handle = tuple[Callable[..., Tensor], tuple[object, ...]]
_DEVICE_ARGUMENT = 6  # of rebuild_cuda_tensor in torch.multiprocessing.reductions


def export(storage: Tensor) -> Handle:
    """What another process needs to map a CUDA storage (``cudaIpcGetMemHandle``).

    Raises RuntimeError for memory that CUDA does not share (expandable segments of old drivers).
    """
    from torch.multiprocessing.reductions import reduce_tensor

    handle: Handle = reduce_tensor(storage)
    return handle


def open_handle(handle: Handle, device: torch.device) -> Tensor:
    """Map what another process exported; ``device`` is this process's own.

    The memory may lie on another GPU, which CUDA then reaches by peer access. Opening it under the
    exporter's device number instead would make a context there, or fail where only one GPU is
    visible. Raises RuntimeError.
    """
    rebuild, arguments = handle
    here = list(arguments)
    here[_DEVICE_ARGUMENT] = torch.cuda.current_device() if device.index is None else device.index
    return rebuild(*here)
