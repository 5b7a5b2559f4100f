"""What rank processes run in the tests of routing."""

import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import InvalidInputError
from foremoe.routing.router_losses import LossWeights, RouterLosses
from foremoe.routing.selection_bias import BiasBalancer
from tests.routing.batches import EXPERTS, LAYERS, Routing, routing
from tests.routing.mismatches import LAYERS as COMPARED
from tests.routing.mismatches import compare, live_routing


def observe(losses: RouterLosses, routings: dict[int, Routing]) -> Tensor:
    with losses.observing():
        for layer, one in routings.items():
            losses.observe(layer, one.logits, one.probabilities, one.expert_ids)
    return losses.total()


def synchronised_losses(
    rank: int, weights: LossWeights, micro_steps: int, counts: dict[int, Tensor] | None
) -> list[tuple[float, dict[int, Tensor]]]:
    """Loss and logits' gradients of every micro-step on this rank."""
    losses = RouterLosses(LAYERS, EXPERTS, weights, dist.group.WORLD)
    if counts is not None:
        losses.expect(counts)
    results = []
    for micro_step in range(micro_steps):
        routings = {layer: routing(layer, rank, micro_step) for layer in LAYERS}
        loss = observe(losses, routings)
        loss.backward()
        gradients = {layer: gradient(one) for layer, one in routings.items()}
        results.append((loss.item(), gradients))
    return results


def gradient(one: Routing) -> Tensor:
    assert one.logits.grad is not None
    return one.logits.grad


def balance_biases(rank: int, steps: int) -> dict[int, Tensor]:
    """Biases after some mini-batches of two micro-steps each, the first of which runs twice."""
    biases = {layer: torch.zeros(EXPERTS) for layer in LAYERS}
    balancer = BiasBalancer(biases, 0.5, dist.group.WORLD)
    for step in range(steps):
        for micro_step in (0, 0, 1):
            with balancer.micro_step(micro_step):
                for layer in LAYERS:
                    one = routing(layer, rank, 2 * step + micro_step)
                    balancer.observe(layer, one.logits, one.probabilities, one.expert_ids)
        balancer.update()
    return biases


def check_mismatch(rank: int, misplaced: int) -> str:
    """What the verifier says when the routing of rank ``misplaced`` is off by one row."""
    live = live_routing(seed=rank)
    mismatch = compare(live, live.roll(1, 0) if rank == misplaced else live)
    try:
        reports = mismatch.check(dist.group.WORLD)
    except InvalidInputError as error:
        return str(error)
    assert [report.tokens for report in reports] == [len(live)] * len(COMPARED)
    return ""
