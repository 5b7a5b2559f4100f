"""A rank's description of itself and of its EP group."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.limits import MAX_EXPERTS, MAX_RANKS, check_layers, check_name, check_range
from foremoe.planner.problem import check_homes
from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.v1.rank_pb2 import RegisterRankRequest


@dataclass(frozen=True, slots=True)
class RankRegistration:
    """Rank ``rank`` of ``ranks`` in the EP group named ``ep_group``.

    ranks_per_node: consecutive ranks that share a node.
    spare_slots: R, replicas a rank can hold per layer.
    num_experts: E, logical experts per layer.
    layers: global 0-based decoder layer ids of the MoE layers, ascending.
    moves_homes: the ranks move experts to the homes that a step's plans name.
    home: int32 ``[L, E]``, where experts live now; None for contiguous homes.

    Raises InvalidInputError, naming the field, when a value is out of range.
    """

    ep_group: str
    rank: int
    ranks: int
    ranks_per_node: int
    spare_slots: int
    num_experts: int
    layers: tuple[int, ...]
    moves_homes: bool = False
    home: NDArray[np.int32] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        check_name(self.ep_group, "ep_group")
        check_range(self.ranks, 1, MAX_RANKS, "ranks")
        check_range(self.rank, 0, self.ranks - 1, "rank")
        check_range(self.num_experts, 1, MAX_EXPERTS, "num_experts")
        check_range(self.spare_slots, 0, self.num_experts, "spare_slots")
        check_range(self.ranks_per_node, 1, self.ranks, "ranks_per_node")
        check_layers(self.layers, "layers")
        if self.ranks % self.ranks_per_node:
            raise InvalidInputError(
                f"ranks_per_node: {self.ranks_per_node} does not divide ranks ({self.ranks})"
            )
        if self.num_experts % self.ranks:
            raise InvalidInputError(
                f"num_experts: {self.num_experts} cannot be shared evenly by {self.ranks} ranks"
            )
        if self.home is not None:
            check_homes(self.home, self.ranks)


def encode_registration(registration: RankRegistration) -> RegisterRankRequest:
    return RegisterRankRequest(
        ep_group=registration.ep_group,
        rank=registration.rank,
        ranks=registration.ranks,
        ranks_per_node=registration.ranks_per_node,
        spare_slots=registration.spare_slots,
        num_experts=registration.num_experts,
        layers=registration.layers,
        moves_homes=registration.moves_homes,
        home=None if registration.home is None else encode_array(registration.home),
    )


def decode_registration(message: RegisterRankRequest) -> RankRegistration:
    """Raises InvalidInputError as RankRegistration does."""
    shape = (len(message.layers), message.num_experts)
    has_home = message.moves_homes and message.HasField("home")
    return RankRegistration(
        ep_group=message.ep_group,
        rank=message.rank,
        ranks=message.ranks,
        ranks_per_node=message.ranks_per_node,
        spare_slots=message.spare_slots,
        num_experts=message.num_experts,
        layers=tuple(message.layers),
        moves_homes=message.moves_homes,
        home=decode_array(message.home, "home", [np.int32], shape) if has_home else None,
    )
