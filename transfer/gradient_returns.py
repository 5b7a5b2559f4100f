"""Replica gradients on their way home, as many at a time as there is room for."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from foremoe.transfer.gradients import GradientCopy, GradientSink
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import PeerTransport


@dataclass(slots=True, eq=False)
class GradientReturns:
    """Posts what slots owe and hands over what comes home.

    All ranks make the same calls, so each knows how many gradients are on their way to every home.

    buffers: how many may be on their way to one home, None for any number. Without a peer path or
    a sink there must be none.
    """

    rank: int
    ends: PeerEnds
    peer: PeerTransport | None
    buffers: int | None
    sink: GradientSink | None
    wait_seconds: float
    _under_way: Counter[int] = field(default_factory=Counter)  # by home

    def send(self, copies: Sequence[GradientCopy], generation: int) -> None:
        """Post ``copies``; where a home has no buffer left, ``collect`` those under way first.

        They go by expert and rank, so that at most one expert's sum is in pieces then.
        """
        batch: list[GradientCopy] = []
        for copy in sorted(copies, key=attrgetter("layer", "home", "expert", "rank")):
            if self._under_way[copy.home] == self.buffers:
                if batch and (batch[-1].layer, batch[-1].expert) == (copy.layer, copy.expert):
                    batch[-1] = replace(batch[-1], more=True)
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
        if self.sink is not None:
            self.ends.inbox.collect(self.sink, self.wait_seconds)
        self.ends.statistics.add_exposed_gradients(time.monotonic() - started)

    def _post(self, copies: Sequence[GradientCopy], generation: int) -> None:
        if not copies:
            return
        assert self.peer is not None, "gradients are owed without a way home"
        into = self.ends.inbox.expect([copy for copy in copies if copy.home == self.rank])
        for copy in copies:
            if copy.rank == self.rank:
                self.ends.pool.hold_gradients(copy.slot)
        self.peer.post_gradients(copies, into, generation)
