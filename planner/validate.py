"""An independent check of a plan against the load it was made for: rules 2 and 3 of the design.

Plain numpy, and nothing of the planner's own code: a plan that passes sends every (token, expert)
pair to exactly one rank that holds the expert, and fits in the spare slots.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.plan import Plan
from foremoe.planner.problem import Topology


def validate(plan: Plan, load: NDArray[np.int64], topology: Topology, spare_slots: int) -> None:
    """Raise InvalidInputError that names the rule and the place unless ``plan`` fits ``load``.

    load: int64 ``[L, P, E]``, the pairs that originate on each rank.
    """
    _check_shapes(plan, load, topology, spare_slots)
    layers, ranks, experts = load.shape
    _refuse(load < 0, "every token once: load is negative at", "layer row {}, source {}, expert {}")
    _refuse(
        (plan.home < 0) | (plan.home >= ranks),
        "every token once: home is no rank at",
        "layer row {}, expert {}",
    )
    _refuse(
        (plan.replica_expert < -1) | (plan.replica_expert >= experts),
        "every token once: replica_expert is no expert at",
        "layer row {}, rank {}, slot {}",
    )
    _refuse(
        plan.replica_tokens < 0,
        "every token once: replica_tokens is negative at",
        "layer row {}, source {}, rank {}, slot {}",
    )
    _refuse(
        (plan.replica_expert[:, None] < 0) & (plan.replica_tokens > 0),
        "every token once: an empty slot is given tokens at",
        "layer row {}, source {}, rank {}, slot {}",
    )
    for layer in range(layers):
        _check_layer(plan, load, layer)


def _check_shapes(
    plan: Plan, load: NDArray[np.int64], topology: Topology, spare_slots: int
) -> None:
    if load.ndim != 3 or load.shape[1] != topology.ranks:
        raise InvalidInputError(
            f"load: expected [layers, {topology.ranks} ranks, experts], got {list(load.shape)}"
        )
    layers, ranks, experts = load.shape
    if plan.replica_expert.ndim == 3 and plan.replica_expert.shape[2] > spare_slots:
        raise InvalidInputError(
            f"capacity: the plan uses {plan.replica_expert.shape[2]} slots per rank and layer, "
            f"there are {spare_slots}"
        )
    slots = plan.replica_expert.shape[-1]
    for name, array, shape in (
        ("home", plan.home, (layers, experts)),
        ("load", plan.load, (layers, ranks, experts)),
        ("replica_expert", plan.replica_expert, (layers, ranks, slots)),
        ("replica_tokens", plan.replica_tokens, (layers, ranks, ranks, slots)),
        ("bound", plan.bound, (layers,)),
    ):
        if array.shape != shape:
            raise InvalidInputError(
                f"plan: {name} has shape {list(array.shape)}, expected {list(shape)}"
            )
        if not np.issubdtype(array.dtype, np.integer):
            raise InvalidInputError(f"plan: {name} holds {array.dtype}, expected integers")
    if not np.array_equal(plan.load, load):
        raise InvalidInputError("plan: was made for another load")


def _check_layer(plan: Plan, load: NDArray[np.int64], layer: int) -> None:
    """Replicas are where they may be, and take no more of any source's pairs than there are."""
    home, held = plan.home[layer], plan.replica_expert[layer]
    ranks, experts = load.shape[1:]
    if np.any(np.bincount(home, minlength=ranks) * ranks != experts):
        raise InvalidInputError(
            f"capacity: layer row {layer} does not give every rank {experts // ranks} home experts"
        )
    taken = np.zeros((ranks, experts), np.int64)
    for rank, slot in zip(*np.nonzero(held >= 0), strict=True):
        expert = held[rank, slot]
        place = f"layer row {layer}, rank {rank}, slot {slot}, expert {expert}"
        if home[expert] == rank:
            raise InvalidInputError(f"capacity: a replica on its own home at {place}")
        if expert in held[rank, :slot]:
            raise InvalidInputError(f"capacity: an expert twice on one rank at {place}")
        taken[:, expert] += plan.replica_tokens[layer, :, rank, slot]
    _refuse(
        taken > load[layer],
        f"every token once: replicas serve more pairs than there are at layer row {layer},",
        "source {}, expert {}",
    )


def _refuse(wrong: NDArray[np.bool_], problem: str, place: str) -> None:
    """Raise for the first place where ``wrong`` holds."""
    if wrong.any():
        raise InvalidInputError(f"{problem} {place.format(*np.argwhere(wrong)[0])}")
