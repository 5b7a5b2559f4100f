"""The plan of one micro-step as one rank holds it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.limits import check_range
from foremoe.planner.plan import placement_digest
from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.stages import decode_stage, encode_stage
from foremoe.rpc.v1.rank_pb2 import StreamPlansResponse
from foremoe.vocabulary import Stage


@dataclass(frozen=True, slots=True, eq=False)
class RankPlan:
    """Where every expert and replica is, and where this rank's tokens go.

    micro_step: index within the stage's ``micro_steps``; mini_batch: the optimizer step it is in.
    layers: int32 ``[L]``, global decoder layer ids, the order of the layer axis below.
    home: int32 ``[L, E]``, the rank that owns each expert.
    replica_expert: int32 ``[L, P, R]``, the expert each spare slot must hold, -1 for none.
    replica_tokens: int64 ``[L, P, R]``, this rank's pairs of that expert that the replica computes.
    digest: planner.plan.placement_digest of the placement.
    """

    step: int
    stage: Stage
    micro_step: int
    micro_steps: int
    mini_batch: int
    layers: NDArray[np.int32]
    home: NDArray[np.int32]
    replica_expert: NDArray[np.int32]
    replica_tokens: NDArray[np.int64]
    digest: bytes


def encode_rank_plan(plan: RankPlan) -> StreamPlansResponse:
    return StreamPlansResponse(
        step=plan.step,
        stage=encode_stage(plan.stage),
        micro_step=plan.micro_step,
        micro_steps=plan.micro_steps,
        mini_batch=plan.mini_batch,
        layers=plan.layers.tolist(),
        home=encode_array(plan.home),
        replica_expert=encode_array(plan.replica_expert),
        replica_tokens=encode_array(plan.replica_tokens),
        placement_digest=plan.digest,
    )


def decode_rank_plan(message: StreamPlansResponse, group: RankRegistration) -> RankPlan:
    """The plan in ``message``, its digest computed here from what arrived.

    Raises InvalidInputError when the message does not fit ``group`` or its digest differs: such a
    plan must not be used.
    """
    ranks, experts, layers = group.ranks, group.num_experts, len(group.layers)
    slots = (layers, ranks, group.spare_slots)
    if tuple(message.layers) != group.layers:
        raise InvalidInputError("plan: layers differ from those registered")
    check_range(message.micro_step, 0, message.micro_steps - 1, "plan: micro_step")
    stage = decode_stage(message.stage, "plan: stage")
    home = decode_array(message.home, "plan: home", [np.int32], (layers, experts))
    replica_expert = decode_array(message.replica_expert, "plan: replica_expert", [np.int32], slots)
    replica_tokens = decode_array(message.replica_tokens, "plan: replica_tokens", [np.int64], slots)
    layer_ids = np.array(message.layers, np.int32)
    digest = placement_digest(
        message.step, stage, message.micro_step, layer_ids, home, replica_expert
    )
    if digest != message.placement_digest:
        raise InvalidInputError("plan: the placement digest does not match the placement")
    _check_placement(home, replica_expert, replica_tokens, ranks)
    return RankPlan(
        step=message.step,
        stage=stage,
        micro_step=message.micro_step,
        micro_steps=message.micro_steps,
        mini_batch=message.mini_batch,
        layers=layer_ids,
        home=home,
        replica_expert=replica_expert,
        replica_tokens=replica_tokens,
        digest=digest,
    )


def _check_placement(
    home: NDArray[np.int32],
    replica_expert: NDArray[np.int32],
    replica_tokens: NDArray[np.int64],
    ranks: int,
) -> None:
    experts = home.shape[1]
    if int(home.min()) < 0 or int(home.max()) >= ranks:
        raise InvalidInputError(f"plan: home ranks must lie in [0, {ranks})")
    if replica_expert.size == 0:
        return
    if int(replica_expert.min()) < -1 or int(replica_expert.max()) >= experts:
        raise InvalidInputError(f"plan: replica experts must lie in [-1, {experts})")
    layer, rank, slot = np.nonzero(replica_expert >= 0)
    if np.any(home[layer, replica_expert[layer, rank, slot]] == rank):
        raise InvalidInputError("plan: a replica sits on its expert's home rank")
    if int(replica_tokens.min()) < 0 or np.any(replica_tokens[replica_expert < 0]):
        raise InvalidInputError("plan: token counts must not be negative or on an empty slot")
