"""When a copy is there: at once on the CPU, at a point of a stream on a CUDA device.

A CUDA transport enqueues its copies on a stream beside compute and returns. The slot is READY for
the host then; a ticket orders what compute enqueues later after the copy, and no thread waits.
"""

import time
from abc import ABC, abstractmethod

import torch

from foremoe.errors import TransferError

_POLL_SECONDS = 0.0005


class Ticket(ABC):
    """A point in the work of a device."""

    @abstractmethod
    def wait(self) -> None:
        """What the calling thread does on its current stream from now on comes after it."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the device has passed it."""

    @abstractmethod
    def seconds_since(self, earlier: "Ticket") -> float:
        """The device's time between two tickets that are both done; 0 where it is not measured."""

    def settle(self, wait_seconds: float, what: str) -> None:
        """Block until it is done. Raises TransferError at the deadline."""
        deadline = time.monotonic() + wait_seconds
        while not self.done():
            if time.monotonic() > deadline:
                raise TransferError(
                    f"{what}: the device did not finish within {wait_seconds} s; a rank of the "
                    "group is late or lost"
                )
            time.sleep(_POLL_SECONDS)


class _Done(Ticket):
    """On the CPU a call returns when its work is done."""

    def wait(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def seconds_since(self, earlier: Ticket) -> float:
        del earlier
        return 0.0


DONE: Ticket = _Done()


class CudaTicket(Ticket):
    """An event on the stream that was current when it was made."""

    def __init__(self, timed: bool) -> None:
        self._event = torch.cuda.Event(enable_timing=timed)
        self._event.record()

    def wait(self) -> None:
        self._event.wait()

    def done(self) -> bool:
        passed: bool = self._event.query()
        return passed

    def seconds_since(self, earlier: Ticket) -> float:
        assert isinstance(earlier, CudaTicket)
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3


class HostTicket(Ticket):
    """The moment at which it was made, where calls return when their work is done."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def wait(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def seconds_since(self, earlier: Ticket) -> float:
        assert isinstance(earlier, HostTicket)
        return self._at - earlier._at


def moment(device: torch.device) -> Ticket:
    """Now, in the device's time: when it has done the current stream's work so far."""
    return CudaTicket(timed=True) if device.type == "cuda" else HostTicket()


def mark(device: torch.device, timed: bool = False) -> Ticket:
    """The current stream's last work so far. timed: for ``seconds_since``."""
    return CudaTicket(timed) if device.type == "cuda" else DONE


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream beside compute, for ``torch.cuda.stream(...)``; None, which changes nothing, on CPU.

    High priority lets NCCL's kernels start before queued compute; copy engines do not look at it.
    """
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
