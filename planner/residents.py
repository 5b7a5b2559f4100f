"""Planning over time: replicas that stay in their slots over many micro-steps.

All micro-steps of a mini-batch are known in advance, and a replica that stays where it is costs no
copy. So the question is not which replicas are best now, but which few changes of the slots keep
every micro-step at or below its threshold T, the goal of its layer. Layers are independent.

For one micro-step and the experts the slots hold, the quotas are a flow: pairs of an expert may
sit on its home or on any rank that holds a replica of it. From the ranks above T, shortest
augmenting paths move pairs to ranks below T; what cannot move is the micro-step's excess, and the
ranks from which no pair can flow to a rank below T are stuck. The flow is exact: with these slots
the excess cannot be less.

While the present micro-step has an excess, one slot changes. A candidate is a replica (e, p) of an
expert with movable pairs on stuck ranks, on a rank p from which pairs can flow on to room. Its gain
in a micro-step is the share of the excess it can remove,

    gain = min(pairs of e on stuck ranks, reach of p, excess) / excess,

where the reach of p is its own room or the widest way to another rank's. A slot's loss is the share
of the threshold that its present replica serves. The candidate with the highest

    sum_k weight_k * (gain_k - loss_k)

over the present and the coming micro-steps is copied in, where weights decay by a twentieth with
each micro-step and the present one counts double; the gain of a replica outside its home's node
counts half, as its copy crosses the slower network. On its rank it replaces the replica with the
lowest loss, or nothing while a slot is free; a replica copied for the present micro-step stays for
it. All numbers are integers; between equals the one in its home's node, then the lowest rank, then
the lowest expert.
"""

import numpy as np
from numpy.typing import NDArray

from foremoe.planner import residents_flow
from foremoe.planner.kernel import kernel_with, part
from foremoe.planner.residents_flow import Hops, Horizon, begin, flow, link

SHARE = 1024  # one whole, for gains and losses
HEAVIEST = 2**20  # weight of the next micro-step


@kernel_with(residents_flow)
def advance(
    chosen: NDArray[np.int64],
    weight: NDArray[np.int64],
    threshold: NDArray[np.int64],
    home: NDArray[np.int32],
    ranks_per_node: int,
    slot: NDArray[np.int32],
    left: NDArray[np.int64],
    served: NDArray[np.int64],
    tokens: NDArray[np.int64],
    excess: NDArray[np.int64],
    stuck: NDArray[np.bool_],
    row: int,
    rows: int,
) -> None:
    """Settle the micro-step in ``row`` for the chosen layers, with an eye on the ``rows`` after it.

    weight ``[L, W, E]``, threshold ``[L, W]``, home ``[L, E]``, slot ``[L, P, R]`` and the state of
    the flows as in ``Horizon`` with a leading L. Rows follow each other modulo W. Changes slot and
    the flows; afterwards ``served[:, row]`` are the quotas, and ``excess[:, row]`` is above zero
    where the threshold is out of reach.
    """
    _, ranks, slots = slot.shape
    node = np.zeros(ranks, np.int64)
    for rank in range(ranks):
        node[rank] = rank // ranks_per_node
    hops = Hops(
        np.zeros(ranks, np.int64),
        np.zeros(ranks * slots, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
    )
    for layer in chosen:
        horizon = Horizon(
            weight[layer],
            threshold[layer],
            home[layer],
            node,
            slot[layer],
            left[layer],
            served[layer],
            tokens[layer],
            excess[layer],
            stuck[layer],
        )
        link(horizon, hops)
        _settle(horizon, hops, row, rows)


@part
def _settle(horizon: Horizon, hops: Hops, row: int, rows: int) -> None:
    """Change slots until the micro-step in ``row`` has no excess or nothing helps."""
    ranks, slots = horizon.slot.shape
    experts = len(horizon.home)
    depth = len(horizon.threshold)
    if horizon.excess[row] < 0:
        begin(horizon, row)
        flow(horizon, hops, row)
    if horizon.excess[row] == 0:
        return
    fixed = np.zeros((ranks, slots), np.bool_)
    score = np.zeros((ranks, experts), np.int64)
    loss = np.zeros((ranks, slots), np.int64)
    movable = np.zeros(experts, np.int64)
    reach = np.zeros(ranks, np.int64)
    candidates = np.zeros((ranks * experts, 2), np.int64)
    for ahead in range(1, rows + 1):
        other = (row + ahead) % depth
        if horizon.excess[other] < 0:
            begin(horizon, other)
            flow(horizon, hops, other)
    while horizon.excess[row] > 0:
        _reaches(horizon, row, movable, reach)
        count = _candidates(horizon, fixed, movable, reach, candidates)
        if count == 0:
            return
        for place in range(count):
            score[candidates[place, 0], candidates[place, 1]] = 0
        loss[:, :] = 0
        weight = 2 * HEAVIEST
        for ahead in range(rows + 1):
            other = (row + ahead) % depth
            if horizon.excess[other] > 0:
                if ahead > 0:
                    _reaches(horizon, other, movable, reach)
                for place in range(count):
                    rank, expert = candidates[place]
                    gain = min(movable[expert], reach[rank], horizon.excess[other])
                    score[rank, expert] += weight * (gain * SHARE // horizon.excess[other])
            _add_losses(horizon, other, weight, loss)
            weight = HEAVIEST if ahead == 0 else weight * 19 // 20
        rank, place, expert = _choose(horizon, fixed, candidates[:count], score, loss)
        fixed[rank, place] = True
        _exchange(horizon, hops, rank, place, expert, row, rows)


@part
def _candidates(
    horizon: Horizon,
    fixed: NDArray[np.bool_],
    movable: NDArray[np.int64],
    reach: NDArray[np.int64],
    candidates: NDArray[np.int64],
) -> int:
    """List (rank, expert) that lower the present excess; how many there are."""
    ranks, slots = horizon.slot.shape
    count = 0
    for rank in range(ranks):
        changeable = False
        for place in range(slots):
            changeable = changeable or not fixed[rank, place]
        if reach[rank] == 0 or not changeable:
            continue
        for expert in range(len(horizon.home)):
            if movable[expert] == 0 or horizon.home[expert] == rank:
                continue
            held = False
            for place in range(slots):
                held = held or horizon.slot[rank, place] == expert
            if not held:
                candidates[count, 0] = rank
                candidates[count, 1] = expert
                count += 1
    return count


@part
def _reaches(
    horizon: Horizon, row: int, movable: NDArray[np.int64], reach: NDArray[np.int64]
) -> None:
    """Pairs of each expert on stuck ranks, and pairs each other rank could take or pass on."""
    ranks, slots = horizon.slot.shape
    stuck = horizon.stuck[row]
    for expert in range(len(movable)):
        movable[expert] = horizon.left[row, expert] if stuck[horizon.home[expert]] else 0
    for rank in range(ranks):
        reach[rank] = 0 if stuck[rank] else horizon.threshold[row] - horizon.tokens[row, rank]
        if stuck[rank]:
            for place in range(slots):
                if horizon.slot[rank, place] >= 0:
                    movable[horizon.slot[rank, place]] += horizon.served[row, rank, place]
    for _ in range(2):  # ways of two hops are enough in practice
        for rank in range(ranks):
            for place in range(slots):
                expert = horizon.slot[rank, place]
                if expert < 0:
                    continue
                owner = horizon.home[expert]
                if not stuck[owner]:
                    wide = min(horizon.left[row, expert], reach[rank])
                    reach[owner] = max(reach[owner], wide)
                if not stuck[rank]:
                    wide = min(horizon.served[row, rank, place], reach[owner])
                    reach[rank] = max(reach[rank], wide)


@part
def _add_losses(horizon: Horizon, row: int, weight: int, loss: NDArray[np.int64]) -> None:
    """What each slot's replica is worth in one micro-step."""
    ranks, slots = horizon.slot.shape
    threshold = max(horizon.threshold[row], 1)
    for rank in range(ranks):
        for place in range(slots):
            served = horizon.served[row, rank, place]
            if served > 0:
                loss[rank, place] += weight * min(2 * served * SHARE // threshold, SHARE)


@part
def _choose(
    horizon: Horizon,
    fixed: NDArray[np.bool_],
    candidates: NDArray[np.int64],
    score: NDArray[np.int64],
    loss: NDArray[np.int64],
) -> tuple[int, int, int]:
    """The best (rank, slot, expert)."""
    slots = horizon.slot.shape[1]
    best_rank, best_place, best_expert = -1, -1, -1
    best_score, best_near = 0, False
    for rank, expert in candidates:
        place = -1
        for other in range(slots):
            if fixed[rank, other]:
                continue
            if horizon.slot[rank, other] < 0:
                place = other
                break
            if place < 0 or loss[rank, other] < loss[rank, place]:
                place = other
        near = horizon.node[rank] == horizon.node[horizon.home[expert]]
        gain = score[rank, expert] if near else score[rank, expert] // 2
        value = gain - loss[rank, place]
        if best_rank < 0 or value > best_score or (value == best_score and near and not best_near):
            best_rank, best_place, best_expert = rank, place, expert
            best_score, best_near = value, near
    return best_rank, best_place, best_expert


@part
def _exchange(
    horizon: Horizon, hops: Hops, rank: int, place: int, expert: int, row: int, rows: int
) -> None:
    """Put another replica into a slot and mend the flows of all micro-steps in sight."""
    depth = len(horizon.threshold)
    evicted = horizon.slot[rank, place]
    horizon.slot[rank, place] = expert
    link(horizon, hops)
    for ahead in range(rows + 1):
        other = (row + ahead) % depth
        returned = horizon.served[other, rank, place]
        if returned > 0:
            horizon.served[other, rank, place] = 0
            horizon.left[other, evicted] += returned
            horizon.tokens[other, rank] -= returned
            horizon.tokens[other, horizon.home[evicted]] += returned
        if returned > 0 or horizon.excess[other] > 0:
            flow(horizon, hops, other)
