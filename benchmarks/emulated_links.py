"""Links of a chosen speed in one process: real bytes move between real buffers, at their pace.

A copy between ranks needs the sender's way out and the receiver's way in. Copies that need the same
link at the same time share its speed evenly (max-min fair: no copy is slowed for one that has
more), as they do on a network. The bytes are moved at once and the caller sleeps until the end.
Sleeping needs no core, so a group of ranks, as threads, has its own links on any machine. An idle
link saves up what it carries in ``SAVED_SECONDS`` (a token bucket), because a busy machine wakes
threads that much too late, and a copy engine with a queue would not have paused.
"""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from foremoe.transfer.host_cache import HostExpertCache

SAVED_SECONDS = 0.005
_LAST_BYTE = 0.5  # what is left of a copy that is done, by rounding


@dataclass(eq=False)
class EmulatedLink:
    """idle_since: when its last copy ended."""

    bytes_per_second: float
    idle_since: float = 0.0


@dataclass(eq=False)
class _Flight:
    """A copy on its links; ends_at: if nothing else is asked for."""

    links: Sequence[EmulatedLink]
    left: float
    speed: float = 0.0
    ends_at: float = math.inf


class LinkClock:
    """Moves all copies forward together, as they may depend on each other's links."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._flying: list[_Flight] = []
        self._held: list[_Flight] | None = None
        self._now = time.monotonic()

    def hold(self) -> None:
        """From now on copies that are asked for wait for ``start``; none may be under way."""
        with self._changed:
            self._held = []

    def start(self) -> None:
        with self._changed:
            self._now = time.monotonic()
            self._flying, self._held = self._held or [], None
            self._foresee()
            self._changed.notify_all()

    def ask(self, links: Sequence[EmulatedLink], nbytes: int) -> _Flight:
        with self._changed:
            if self._held is not None:
                self._held.append(_Flight(links, nbytes))
                return self._held[-1]
            self._advance(time.monotonic())
            busy = {link for other in self._flying for link in other.links}
            flight = _Flight(links, nbytes)
            if busy.isdisjoint(links):
                idle = self._now - max(link.idle_since for link in links)
                speed = min(link.bytes_per_second for link in links)
                flight.left = max(0.0, nbytes - min(idle, SAVED_SECONDS) * speed)
            self._flying.append(flight)
            self._foresee()
            self._changed.notify_all()
        return flight

    def wait(self, flight: _Flight) -> None:
        """Sleep until the copy has ended, which later ones may put off."""
        with self._changed:
            while (remaining := flight.ends_at - time.monotonic()) > 0:
                self._changed.wait(remaining if math.isfinite(remaining) else None)

    def _advance(self, until: float) -> None:
        while self._flying and (now := _fly(self._flying, self._now, until)) < until:
            self._now = now
        self._now = until

    def _foresee(self) -> None:
        """Let copies of the flights fly to their ends."""
        shadows = {replace(flight): flight for flight in self._flying}
        flying, now = list(shadows), self._now
        while flying:
            before = list(flying)
            now = _fly(flying, now, math.inf)
            for shadow in before:
                if shadow not in flying:
                    shadows[shadow].ends_at = now


def _fly(flying: list[_Flight], now: float, until: float) -> float:
    """Move all copies on until the first ones end, at most ``until``; the time then."""
    _share(flying)
    step = min(min(flight.left / flight.speed for flight in flying), until - now)
    for flight in list(flying):
        flight.left -= flight.speed * step
        if flight.left < _LAST_BYTE:
            flying.remove(flight)
            for link in flight.links:
                link.idle_since = now + step
    return now + step


def _share(flying: Sequence[_Flight]) -> None:
    """Give out the speeds: of the link with the least for each, then of what others leave."""
    left: dict[EmulatedLink, float] = {}
    users: dict[EmulatedLink, list[_Flight]] = {}
    for flight in flying:
        for link in flight.links:
            left[link] = link.bytes_per_second
            users.setdefault(link, []).append(flight)
    while users:
        tightest = min(users, key=lambda link: left[link] / len(users[link]))
        speed = left[tightest] / len(users[tightest])
        for flight in list(users[tightest]):
            flight.speed = speed
            for link in flight.links:
                left[link] -= speed
                users[link].remove(flight)
        users = {link: flights for link, flights in users.items() if flights}


def sleep_until(end: float) -> None:
    while (remaining := end - time.monotonic()) > 0:
        time.sleep(remaining)


class LinkedCache(HostExpertCache):
    """A host cache that is read over an emulated link; set both before the first read."""

    clock: LinkClock
    link: EmulatedLink

    def read(
        self, layer: int, expert: int, generation: int, out: NDArray[np.uint8], first: int = 0
    ) -> None:
        carried = min(out.size, self.layout.payload_bytes - first)  # without padding
        flight = self.clock.ask([self.link], carried)
        super().read(layer, expert, generation, out, first)
        self.clock.wait(flight)


class EmulatedNetwork:
    """The ranks' links to each other; ``groups`` are what their engines take as peer groups."""

    def __init__(self, clock: LinkClock, ranks: int, bytes_per_second: float) -> None:
        self.clock = clock
        self._out = [EmulatedLink(bytes_per_second) for _ in range(ranks)]
        self._in = [EmulatedLink(bytes_per_second) for _ in range(ranks)]
        self._changed = threading.Condition()
        self._posted: dict[tuple[int, int, int], _Message] = {}
        self._gathered: dict[tuple[int, int], Tensor] = {}
        self.groups = [EmulatedGroup(self, rank, ranks) for rank in range(ranks)]

    def meet(self, source: int, destination: int, tag: int, tensor: Tensor, sends: bool) -> Work:
        """A send or receive; the copy is asked for when both have been posted."""
        key = (source, destination, tag)
        with self._changed:
            message = self._posted.pop(key, None)
            if message is None:
                self._posted[key] = message = _Message(self, tensor)
            else:
                into, sent = (message.tensor, tensor) if sends else (tensor, message.tensor)
                into.copy_(sent)
                links = [self._out[source], self._in[destination]]
                message.flight = self.clock.ask(links, sent.nbytes)
                self._changed.notify_all()
        return _EmulatedWork(message)

    def wait(self, message: "_Message", seconds: float) -> None:
        """Raises RuntimeError, as gloo does, when the other end is not posted in time."""
        with self._changed:
            self._changed.wait_for(lambda: message.flight is not None, seconds)
        if message.flight is None:
            raise RuntimeError(f"no partner within {seconds} s")
        self.clock.wait(message.flight)

    def gather(self, rank: int, ranks: int, call: int, own: Tensor, into: Sequence[Tensor]) -> None:
        """All ranks' ``own``, once all have called."""
        everyone = [(call, other) for other in range(ranks)]
        with self._changed:
            self._gathered[call, rank] = own
            self._changed.notify_all()
            self._changed.wait_for(lambda: all(key in self._gathered for key in everyone))
        for tensor, key in zip(into, everyone, strict=True):
            tensor.copy_(self._gathered[key])


@dataclass(eq=False)
class _Message:
    network: EmulatedNetwork
    tensor: Tensor
    flight: _Flight | None = None


class _EmulatedWork(Work):
    def __init__(self, message: _Message) -> None:
        super().__init__()
        self._message = message

    def wait(self, timeout: timedelta = timedelta(seconds=60)) -> bool:
        self._message.network.wait(self._message, timeout.total_seconds())
        return True


class _Done(Work):
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:  # noqa: ARG002
        return True


class EmulatedGroup(ProcessGroup):
    """What a transfer engine needs of a process group."""

    def __init__(self, network: EmulatedNetwork, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks)  # type: ignore[call-arg]
        self._network = network
        self._calls = 0

    def send(self, tensors: list[Tensor], dstRank: int, tag: int) -> Work:
        return self._network.meet(self.rank(), dstRank, tag, tensors[0], sends=True)

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int) -> Work:
        return self._network.meet(srcRank, self.rank(), tag, tensors[0], sends=False)

    def allgather(  # type: ignore[override]
        self,
        output_tensors: list[list[Tensor]],
        input_tensors: list[Tensor],
        opts: Any = None,  # noqa: ARG002
    ) -> Work:
        self._calls += 1
        (into,), (own,) = output_tensors, input_tensors
        self._network.gather(self.rank(), self.size(), self._calls, own, into)
        return _Done()
