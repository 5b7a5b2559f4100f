"""What every transport offers: a probe whether it works here, fills, and an end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

import torch

from foremoe.errors import ForemoeError, TransferError
from foremoe.transfer.copies import Copy, Path
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a transport works on this machine, and why (not)."""

    name: str
    path: Path
    works: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeSite:
    """Where and how long transports are tried: ``directory`` is the host cache's."""

    directory: FilePath
    wait_seconds: float = 20.0


class Probed(ABC):
    """Can be tried on this machine, without a job."""

    name: ClassVar[str]
    path: ClassVar[Path]

    @classmethod
    def probe(cls, site: ProbeSite) -> Probe:
        """Move a few bytes the way the transport does, in bounded time."""
        try:
            found = cls._try(site)
        except (ForemoeError, RuntimeError, OSError) as error:
            said = str(error).strip() or type(error).__name__
            return Probe(cls.name, cls.path, False, said.splitlines()[0])
        return Probe(cls.name, cls.path, True, found)

    @classmethod
    @abstractmethod
    def _try(cls, site: ProbeSite) -> str:
        """What was tried; raises ForemoeError, RuntimeError or OSError when it does not work."""


class Transport(ABC):
    """Moves expert slabs into this rank's slots, in the background."""

    @abstractmethod
    def post(self, copies: Sequence[Copy], generation: int) -> None:
        """Queue this rank's part in ``copies`` and return at once.

        Each slot of this rank named as a destination ends READY, or failed with a ForemoeError.
        """

    @abstractmethod
    def settle(self, wait_seconds: float) -> None:
        """Return when nothing that was posted reads weights or writes slots any more.

        Raises a ForemoeError when that does not come about, or a copy was not what it should be.
        """

    @abstractmethod
    def close(self, wait_seconds: float) -> None:
        """End the transport's work within ``wait_seconds``."""


class HostTransport(Transport, Probed):
    """Serves experts whose home is on this node, from its host cache."""

    path = Path.HOST

    def __init__(
        self,
        rank: int,
        cache: HostExpertCache,
        pool: SlotPool,
        statistics: StatisticsRecorder,
        wait_seconds: float,
    ) -> None:
        self._rank = rank
        self._cache = cache
        self._pool = pool
        self._statistics = statistics
        self._wait_seconds = wait_seconds
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Take what copying needs, at the end of construction."""

    def post(self, copies: Sequence[Copy], generation: int) -> None:
        for copy in copies:
            if copy.destination == self._rank and copy.path is Path.HOST:
                self.fill(copy, generation)

    @abstractmethod
    def fill(self, copy: Copy, generation: int) -> None:
        """Do or queue one copy; also the way out when the peer path is lost, from its thread."""


def cuda_device() -> torch.device:
    """The CUDA device that is current. Raises TransferError where there is none."""
    if torch.version.cuda is None:
        raise TransferError("no CUDA device: this torch is built for the CPU")
    if not torch.cuda.is_available():
        raise TransferError("no CUDA device is visible to this process")
    return torch.device("cuda", torch.cuda.current_device())
