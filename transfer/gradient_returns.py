"""Replica gradients on their way home, as many at a time as there is room for."""

import time
from collections import Counter
from collections.abc import Sequence

from foremoe.errors import TransferError
from foremoe.transfer.gradients import GradientCopy, GradientSink, ReturnedGradient
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import PeerTransport


class GradientReturns:
    """Posts what slots owe and hands over what comes home.

    All ranks make the same calls, so each knows how many gradients are on their way to every home.
    """

    def __init__(
        self,
        rank: int,
        ends: PeerEnds,
        peer: PeerTransport | None,
        buffers: int | None,
        sink: GradientSink | None,
        wait_seconds: float,
    ) -> None:
        """buffers: how many may be on their way to one home, None for any number."""
        self._rank = rank
        self._ends = ends
        self._peer = peer
        self._buffers = buffers
        self._sink = sink or _nowhere
        self._wait_seconds = wait_seconds
        self._under_way = Counter[int]()  # by home

    def send(self, copies: Sequence[GradientCopy], generation: int) -> None:
        """Post ``copies``; where a home has no buffer left, ``collect`` those under way first."""
        batch: list[GradientCopy] = []
        for copy in copies:
            if self._under_way[copy.home] == self._buffers:
                self._post(batch, generation)
                batch = []
                self.collect()
            self._under_way[copy.home] += 1
            batch.append(copy)
        self._post(batch, generation)

    def collect(self) -> None:
        """Wait until the sink has all that were sent. TransferError when one is lost or late."""
        started = time.monotonic()
        self._under_way.clear()
        self._ends.inbox.collect(self._sink, self._wait_seconds)
        self._ends.statistics.add_exposed_gradients(time.monotonic() - started)

    def _post(self, copies: Sequence[GradientCopy], generation: int) -> None:
        if not copies:
            return
        assert self._peer is not None, "gradients are owed without a way home"
        into = self._ends.inbox.expect([copy for copy in copies if copy.home == self._rank])
        for copy in copies:
            if copy.rank == self._rank:
                self._ends.pool.hold_gradients(copy.slot)
        self._peer.post_gradients(copies, into, generation)


def _nowhere(returned: Sequence[ReturnedGradient]) -> None:
    raise TransferError(f"{len(returned)} gradients came home, but nobody takes them")
