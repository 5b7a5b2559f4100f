"""Groups of sends and receives over a process group of torch: NCCL on CUDA."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import ProcessGroup

from foremoe.errors import TransferError
from foremoe.transfer.grouped_peer import GroupWire, Message
from foremoe.transfer.ticket import mark
from foremoe.transfer.transport import ProbeSite, cuda_device

MOST_CTAS = 4  # SMs that copies may take from compute; two keep one NVLink busy (not measured)


class TorchWire(GroupWire):
    """``batch_isend_irecv`` in a group of its own."""

    name = "NCCL peer through torch"

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        """Collective: the first operation of an NCCL group must be one of all its ranks."""
        self._group = group
        dist.all_reduce(torch.zeros(1, device=device), group=group)

    @classmethod
    def _try(cls, site: ProbeSite) -> str:
        device = cuda_device()
        if not dist.is_nccl_available():
            raise TransferError("this torch is built without NCCL")
        options = dist.ProcessGroupNCCL.Options()
        group: Any = dist.ProcessGroupNCCL(HashStore(), 0, 1, options)
        with torch.cuda.device(device):
            group.allreduce([torch.ones(1, device=device)]).wait()
            mark(device).settle(site.wait_seconds, "NCCL through torch")
        version = ".".join(map(str, torch.cuda.nccl.version()))
        return f"NCCL {version} ran on a group of one rank; not tried between ranks"

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        operations = [
            dist.P2POp(operation, tensor, group=self._group, group_peer=peer)
            for operation, messages in ((dist.irecv, receives), (dist.isend, sends))
            for tensor, peer in messages
        ]
        # NCCL: makes the current stream wait. Other backends: blocks.
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    def close(self, finished: bool = True) -> None:
        """The group is its maker's."""


def new_nccl_group(ranks: Sequence[int]) -> ProcessGroup:
    """An NCCL group of the global ``ranks`` that takes few SMs; collective over them."""
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = MOST_CTAS
    group = dist.new_group(
        list(ranks), backend="nccl", pg_options=options, use_local_synchronization=True
    )
    assert isinstance(group, ProcessGroup)
    return group
