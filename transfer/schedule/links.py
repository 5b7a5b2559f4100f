"""The links between ranks and what they carry: which copy needs which ports, and for how long."""

from dataclasses import dataclass
from enum import IntEnum

from foremoe.errors import InvalidInputError
from foremoe.planner.problem import Topology

NEVER = 2**62  # a deadline that no copy can miss, in nanoseconds


class Link(IntEnum):
    """What carries a copy.

    HOST: from the node's host cache into a rank. PEER: from a rank to one of its node.
    NETWORK: from a rank to one of another node.
    """

    HOST = 0
    PEER = 1
    NETWORK = 2


@dataclass(frozen=True, slots=True)
class Links:
    """How long every rank's links take for one slab, in nanoseconds; 0 where there is no link.

    A rank's host link carries one slab at a time, its peer and network links one out and one in.
    Time is dealt in ticks of ``1 / chunks`` of a slab, so that an urgent copy waits for one chunk
    of another, not for all of it. relay: whether a replica that has arrived may be copied on.
    overtake: whether copies of a host link that were promised before give way to more urgent ones.
    """

    topology: Topology
    host_slab_ns: int
    peer_slab_ns: int
    network_slab_ns: int
    chunks: int = 8
    relay: bool = False
    overtake: bool = True

    def __post_init__(self) -> None:
        slabs = (self.host_slab_ns, self.peer_slab_ns, self.network_slab_ns)
        if not all(0 <= slab < NEVER for slab in slabs):
            raise InvalidInputError(f"links: a slab must take 0 (no link) to {NEVER} ns: {slabs}")
        if not 1 <= self.chunks <= 64:
            raise InvalidInputError(f"links: chunks must be 1 to 64, got {self.chunks}")

    @property
    def tick_ns(self) -> tuple[int, int, int]:
        """One chunk's time on each link, rounded up; 0 where there is no link."""
        slabs = (self.host_slab_ns, self.peer_slab_ns, self.network_slab_ns)
        host, peer, network = (-(-slab // self.chunks) for slab in slabs)
        return host, peer, network

    def between(self, source: int, destination: int) -> Link:
        """The link that carries a copy from rank to rank."""
        same_node = self.topology.node_of(source) == self.topology.node_of(destination)
        return Link.PEER if same_node else Link.NETWORK

    def options(self, source: int, destination: int) -> list[Link]:
        """The links that exist for a copy whose home is ``source``, the host link first."""
        direct = self.between(source, destination)
        wanted = [Link.HOST, direct] if direct is Link.PEER else [direct]
        return [link for link in wanted if self.tick_ns[link] > 0]


def slab_ns(slab_bytes: int, bytes_per_second: float) -> int:
    """How long a link needs for one slab, rounded up; 0 for a link of no speed."""
    speed = int(bytes_per_second)
    return -(-slab_bytes * 10**9 // speed) if speed > 0 else 0
