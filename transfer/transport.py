"""What every transport offers: a statement of whether it works here, fills, and an end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from foremoe.transfer.copies import Copy


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a transport works on this machine, and why (not)."""

    ok: bool
    reason: str


class Transport(ABC):
    """Moves expert slabs into this rank's slots, in the background."""

    @abstractmethod
    def probe(self) -> Probe:
        """Say whether the transport works here."""

    @abstractmethod
    def post(self, copies: Sequence[Copy], generation: int) -> None:
        """Queue this rank's part in ``copies`` and return at once.

        Each slot of this rank named as a destination ends READY, or failed with a ForemoeError.
        """

    @abstractmethod
    def close(self, wait_seconds: float) -> None:
        """End the transport's threads within ``wait_seconds``."""
