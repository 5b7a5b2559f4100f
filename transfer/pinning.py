"""The host cache's pages registered with CUDA, so that a copy needs no staging and no thread."""

from contextlib import suppress

import torch

from foremoe.errors import TransferError
from foremoe.transfer.host_cache import HostExpertCache

# One registration of 512 GiB and more fails with drivers R580 to R610 (vLLM pull request 51081).
_PIECE_BYTES = 64 << 30
_PORTABLE = 1  # cudaHostRegisterPortable: for all contexts of the process


class PinnedSlabs:
    """Every rank registers its own mapping of the cache; the pages themselves exist once."""

    def __init__(self, cache: HostExpertCache, device: torch.device, wait_seconds: float) -> None:
        """Raises TransferError when CUDA refuses; nothing is registered then.

        wait_seconds: for the node's other ranks. Registering the same pages at the same time can
        fail for want of memory (seen by vLLM), so they take turns.
        """
        self._device = device
        self._registered: list[int] = []
        slabs = cache.slabs
        piece = max(1, _PIECE_BYTES // cache.layout.nbytes) * cache.layout.nbytes
        with torch.cuda.device(device), cache.turn(wait_seconds):
            for start in range(0, slabs.numel(), piece):
                self._register(slabs[start : start + piece])

    def _register(self, part: torch.Tensor) -> None:
        cudart = torch.cuda.cudart()
        refused = cudart.cudaHostRegister(part.data_ptr(), part.numel(), _PORTABLE)
        if int(refused) == 0:
            self._registered.append(part.data_ptr())
            return
        self.close()
        # The error stays pending until a kernel launch reports it, which should not be another's.
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)
        reason = cudart.cudaGetErrorString(refused)
        raise TransferError(f"cudaHostRegister of {part.numel()} bytes: {reason}")

    def close(self) -> None:
        """Unregister; no copy may be under way, and the cache must still be mapped."""
        for address in self._registered:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._registered.clear()
