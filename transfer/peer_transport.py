"""What all ways between ranks have in common."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foremoe.errors import TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Copy
from foremoe.transfer.gradients import GradientCopy
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.transport import HostTransport, Transport

HomeWeights = Callable[[int, int], Mapping[str, Tensor]]
Experts = Mapping[tuple[int, int], Mapping[str, Tensor]]  # parameters by (layer, expert)

_log = logging.getLogger("foremoe.transfer")


def own_experts(
    home: NDArray[np.int32], rank: int, layers: Sequence[int], home_weights: HomeWeights
) -> Experts:
    """The experts whose home by ``home [L, E]`` is ``rank``."""
    places = np.argwhere(home == rank).tolist()
    return {(layers[row], expert): home_weights(layers[row], expert) for row, expert in places}


class PeerTransport(Transport):
    """Moves weights from their homes or from replicas, and gradients to the homes.

    When the path is lost, later copies of this rank are read from the host cache where it serves,
    and fail where it does not.
    """

    relays: ClassVar[bool]  # whether it can send on from a slot

    def __init__(
        self, rank: int, topology: Topology, ends: PeerEnds, host: HostTransport | None
    ) -> None:
        self._rank = rank
        self._topology = topology
        self._ends = ends
        self._host = host
        self._lost: TransferError | None = None

    @property
    def lost(self) -> bool:
        """Whether the path broke; it does not come back."""
        return self._lost is not None

    @abstractmethod
    def post_gradients(
        self, copies: Sequence[GradientCopy], into: Mapping[GradientCopy, Tensor], generation: int
    ) -> None:
        """Queue the way home of replica gradients; ``into`` has buffers for own experts'."""

    @abstractmethod
    def weights_changed(self, own: Experts, generation: int) -> None:
        """The homes hold new weights; all ranks call this alike, and nothing is under way."""

    def _lose(self, error: Exception) -> TransferError:
        """The path broke by ``error``; what to say of it from now on."""
        if self._lost is None:
            self._lost = TransferError(f"peer path lost on rank {self._rank}: {error}")
            way_out = "the host cache serves in its place" if self._host else "no host cache"
            _log.warning("peer path lost on rank %d (%s); %s", self._rank, error, way_out)
        return self._lost

    def _fill_otherwise(self, copy: Copy, generation: int, error: TransferError) -> None:
        """Fill a slot of this rank without the peer path, or fail it."""
        self._ends.pool.undo_fill(copy.slot)
        if self._host is not None and not self._is_far(copy.home):
            self._host.fill(copy, generation)
        else:
            self._ends.pool.fail(copy.slot, error)

    def _is_far(self, rank: int) -> bool:
        return self._topology.node_of(rank) != self._topology.node_of(self._rank)
