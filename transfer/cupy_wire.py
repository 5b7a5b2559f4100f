"""Groups of sends and receives over a CuPy communicator of NCCL, where torch has none."""

import logging
import os
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from foremoe.errors import TransferError
from foremoe.transfer.grouped_peer import GroupWire, Message
from foremoe.transfer.ticket import mark
from foremoe.transfer.transport import ProbeSite, cuda_device

# What importing CuPy raises where it does not match the packages beside it.
BROKEN_IMPORT = (ImportError, OSError, ValueError, AttributeError, RuntimeError)

_log = logging.getLogger("foremoe.transfer")


class CupyWire(GroupWire):
    """One communicator. It takes bytes, so any dtype passes, bfloat16 too.

    CuPy cannot cap the SMs of a communicator: set NCCL_MAX_CTAS in the job's environment.
    """

    name = "NCCL peer through CuPy"

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        """Collective over ``group`` (gloo), which carries the communicator's id.

        Raises TransferError when CuPy has no NCCL, on every rank alike if it has none on rank 0.
        """
        if "NCCL_MAX_CTAS" not in os.environ:
            _log.warning("NCCL_MAX_CTAS is not set: CuPy's NCCL takes as many SMs as it likes")
        rank, ranks = group.rank(), group.size()
        ids: list[object] = [None] * ranks
        nccl = None
        try:
            nccl = cupy_nccl()
            own = nccl.get_unique_id() if rank == 0 else None
        except TransferError:
            own = None
        dist.all_gather_object(ids, own, group=group)
        if nccl is None or ids[0] is None:
            raise TransferError("CuPy has no NCCL on this rank or on rank 0")
        self._nccl = nccl
        with torch.cuda.device(device):
            self._communicator = nccl.NcclCommunicator(ranks, ids[0], rank)

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        device, nccl = cuda_device(), cupy_nccl()
        with torch.cuda.device(device):
            number = torch.ones(1, device=device)
            stream, at = torch.cuda.current_stream().cuda_stream, number.data_ptr()
            communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
            communicator.allReduce(at, at, 1, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream)
            mark(device).settle(site.wait_seconds, "NCCL through CuPy")
            communicator.destroy()
        capped = "" if "NCCL_MAX_CTAS" in os.environ else "; set NCCL_MAX_CTAS to spare SMs"
        return f"NCCL {nccl.get_version()} ran on a group of one rank{capped}"

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        nccl, communicator = self._nccl, self._communicator
        stream = torch.cuda.current_stream().cuda_stream
        try:
            nccl.groupStart()
            try:
                for tensor, peer in receives:
                    at, size = tensor.data_ptr(), tensor.nbytes
                    communicator.recv(at, size, nccl.NCCL_UINT8, peer, stream)
                for tensor, peer in sends:
                    at, size = tensor.data_ptr(), tensor.nbytes
                    communicator.send(at, size, nccl.NCCL_UINT8, peer, stream)
            finally:
                nccl.groupEnd()
        except nccl.NcclError as error:
            raise TransferError(f"CuPy NCCL: {error}") from error

    def close(self, finished: bool = True) -> None:
        if finished:
            self._communicator.destroy()
        else:
            self._communicator.abort()  # nobody else would: torch's watchdog does not know it


def cupy_nccl() -> ModuleType:
    """``cupy.cuda.nccl``. Raises TransferError where it cannot be used."""
    try:
        from cupy.cuda import nccl
    except ModuleNotFoundError as error:
        raise TransferError(f"CuPy is not installed ({error})") from error
    except BROKEN_IMPORT as error:
        raise TransferError(f"CuPy cannot be imported: {error!r}") from error
    if not nccl.available:
        raise TransferError("CuPy finds no NCCL: install the nvidia-nccl wheel of its CUDA major")
    module: ModuleType = nccl
    return module
