"""How to divide a model's experts over a cluster: EP, ETP, spare slots, host cache; and why.

Arithmetic on presets, nothing is measured. Memory of a rank: its experts (bf16 weights, float32
gradients, optimizer state divided over the ranks that hold the same experts), everything else
divided over all ranks, and a share set aside for activations. Time of a layer: balanced compute and
dispatch of ``foremoe.planner.cost``, tokens spread evenly over ranks, and the experts' gradients
between the ranks that hold the same ones, once a mini-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import PICOSECONDS
from foremoe.planner.preset import GRADIENT_BYTES, HOME_BYTES
from foremoe.simulation.cluster import Machine

_GIB = 2**30
# With two slots, plans of gpt-oss-20b at imbalance 1.02 keep what is there: 0.3 copies a layer and
# micro-step in place of 6 (docs/plan.md). More slots gain little.
_SPARE_SLOTS = (2, 1)
_LEAST_FRAMES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may use.

    gpu_bytes: of a rank. host_bytes: of a node, for the host cache. reserve: share of gpu_bytes for
    activations and all that is not counted. tokens: of a rank in a micro-step.
    """

    gpu_bytes: float
    host_bytes: float
    reserve: float
    tokens: int
    micro_steps_per_mini_batch: int


@dataclass(frozen=True, slots=True)
class Division:
    """One way to divide the experts: over ``ep`` ranks, each of them over ``etp``.

    memory_bytes: of a rank, without slots. The seconds are of one layer's update.
    """

    ep: int
    etp: int
    memory_bytes: float
    free_bytes: float
    compute_seconds: float
    dispatch_seconds: float
    sync_seconds: float

    @property
    def fits(self) -> bool:
        return self.free_bytes >= 0

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.dispatch_seconds + self.sync_seconds


@dataclass(frozen=True, slots=True)
class Advice:
    """The division to take, what ForeMoE needs beside it, and why.

    resident_layers: layers that have slots at a time; fewer than all means they share them.
    cache_bytes: of a node; 0 is without. hiding_tokens: of a rank and micro-step, from which one
    copy a layer is hidden.
    """

    division: Division
    spare_slots: int
    resident_layers: int
    slot_bytes: float
    cache_bytes: float
    hiding_tokens: int
    reasons: tuple[str, ...]


def divisions(machine: Machine, limits: Limits) -> list[Division]:
    """All ways that the numbers allow, experts undivided first, small EP first."""
    cluster, experts = machine.cluster, machine.model.experts
    return [
        _division(machine, limits, ep, etp)
        for etp in _powers_of_two(cluster.ranks_per_node)
        for ep in range(2, min(experts, machine.ranks) + 1)
        if experts % ep == 0 and machine.ranks % (ep * etp) == 0
    ]


def advise(machine: Machine, limits: Limits) -> Advice:
    """The fastest division that fits, experts undivided if any does.

    Raises InvalidInputError when nothing fits.
    """
    ways = divisions(machine, limits)
    fitting = [way for way in ways if way.fits]
    if not fitting:
        least = min(ways, key=lambda way: way.memory_bytes, default=None)
        need = "no EP size divides both ranks and experts"
        if least is not None:
            need = f"the least is {_gib(least.memory_bytes)} a rank, at EP {least.ep}"
        raise InvalidInputError(
            f"the model does not fit into {machine.ranks} ranks ({need}); "
            "take more ranks or a smaller --reserve"
        )
    etp = min(way.etp for way in fitting)
    best = min((way for way in fitting if way.etp == etp), key=lambda way: way.seconds)
    slots, layers, slot_bytes = _slots(machine, best)
    cache = _cache_bytes(machine, best.ep)
    kept = cache if cache <= limits.host_bytes else 0.0
    hiding = _hiding_tokens(machine, best.ep, bool(kept))
    reasons = (
        *_why_division(machine, limits, ways, best),
        *_why_slots(machine, best, slots, layers, slot_bytes),
        _why_cache(limits, cache),
        _why_hiding(limits, hiding),
    )
    return Advice(best, slots, layers, slot_bytes, kept, hiding, reasons)


def _division(machine: Machine, limits: Limits, ep: int, etp: int) -> Division:
    model, cluster, cost = machine.model, machine.cluster, machine.update()
    copies = machine.ranks // (ep * etp)
    own = model.layers * model.experts / (ep * etp) * model.expert_weights
    state = model.weight_bytes + GRADIENT_BYTES + (HOME_BYTES - model.weight_bytes) / copies
    rest = model.layers * model.other_weights * (HOME_BYTES + GRADIENT_BYTES) / machine.ranks
    memory = own * state + rest
    pairs, here = limits.tokens * model.top_k, min(ep * etp, cluster.ranks_per_node)
    # Shares of evenly spread pairs: between nodes, and between ranks of a node.
    far = 1 - here / (ep * etp)
    near = 1 - 1 / (ep * etp) - far
    each = pairs / (model.experts / ep)  # of an expert on this rank, from all ranks
    compute = cost.launch + model.experts / ep * max(
        cost.read / etp, cost.intercept / etp + cost.pair * each
    )
    dispatch = cost.dispatch_latency + pairs * etp * max(near * cost.node_pair, far * cost.far_pair)
    between = cluster.peer_bytes_per_second
    if ep * etp * copies > cluster.ranks_per_node:
        between = cluster.network_bytes_per_second
    layer_gradient = own / model.layers * GRADIENT_BYTES
    sync = 2 * layer_gradient * (1 - 1 / copies) / between / limits.micro_steps_per_mini_batch
    return Division(
        ep,
        etp,
        memory,
        limits.gpu_bytes * (1 - limits.reserve) - memory,
        compute / PICOSECONDS,
        dispatch / PICOSECONDS,
        sync,
    )


def _slots(machine: Machine, way: Division) -> tuple[int, int, float]:
    """Spare slots, layers that have them at a time, and their bytes with returning gradients."""
    weights = machine.model.expert_weights
    slot = weights * (machine.model.weight_bytes + GRADIENT_BYTES)
    layers = machine.model.layers
    for slots in _SPARE_SLOTS:
        aside = slots * weights * GRADIENT_BYTES
        if layers * slots * slot + aside <= way.free_bytes:
            return slots, layers, layers * slots * slot + aside
    aside = weights * GRADIENT_BYTES
    frames = int((way.free_bytes - aside) // slot)
    if frames < _LEAST_FRAMES:
        return 0, 0, 0.0
    return 1, frames, frames * slot + aside


def _cache_bytes(machine: Machine, ep: int) -> float:
    """Host memory of a node that stages every expert whose home is there, by all its EP groups."""
    per_rank = machine.model.layers * machine.model.experts / ep * machine.model.expert_bytes
    return per_rank * min(machine.cluster.ranks_per_node, machine.ranks)


def _hiding_tokens(machine: Machine, ep: int, cached: bool) -> int:
    """Tokens of a rank whose forward pass of one layer lasts as long as one copy."""
    cost, model = machine.forward(), machine.model
    fixed = cost.launch + model.experts / ep * cost.intercept
    far = ep > machine.cluster.ranks_per_node
    copy = cost.host_copy if cached else cost.network_copy if far else cost.peer_copy
    return max(0, round((copy - fixed) / ((cost.pair + cost.other_pair) * model.top_k)))


def _why_division(
    machine: Machine, limits: Limits, ways: list[Division], best: Division
) -> Iterator[str]:
    limit = limits.gpu_bytes * (1 - limits.reserve)
    smaller = [way for way in ways if way.etp == best.etp and way.ep < best.ep and not way.fits]
    if smaller:
        yield (
            f"EP {smaller[-1].ep} needs {_gib(smaller[-1].memory_bytes)} a rank, more than the "
            f"{_gib(limit)} that {limits.reserve:.0%} set aside leaves of {_gib(limits.gpu_bytes)}"
        )
    yield (
        f"EP {best.ep} takes {_gib(best.memory_bytes)} and the least time that fits: a layer's "
        f"update {best.seconds * 1e3:.2f} ms (compute {best.compute_seconds * 1e3:.2f}, dispatch "
        f"{best.dispatch_seconds * 1e3:.2f}, gradients {best.sync_seconds * 1e3:.2f})"
    )
    here = machine.cluster.ranks_per_node
    if best.ep <= here:
        yield f"EP {best.ep} stays within a node of {here} ranks, tokens do not cross the network"
    else:
        yield f"EP {best.ep} spans {-(-best.ep // here)} nodes: no smaller one fits or is faster"
    if best.etp > 1:
        yield (
            f"ETP {best.etp}: whole experts fit at no EP size; each is divided over {best.etp} "
            "ranks, which ForeMoE does not balance: more ranks would do without"
        )
    else:
        yield "ETP 1: whole experts fit; dividing them sends every token to more ranks"


def _why_slots(
    machine: Machine, way: Division, slots: int, layers: int, slot_bytes: float
) -> Iterator[str]:
    all_layers = machine.model.layers
    if not slots:
        yield "no spare slots: memory is full; a smaller --reserve or a larger EP makes room"
    elif layers < all_layers:
        yield (
            f"{slots} spare slot, shared: {layers} of {all_layers} layers have one at a time "
            f"({_gib(slot_bytes)} of {_gib(way.free_bytes)} free), so replicas are copied each time"
        )
    else:
        plural = "s" if slots > 1 else ""
        yield (
            f"{slots} spare slot{plural} in each of {all_layers} layers take {_gib(slot_bytes)} of "
            f"{_gib(way.free_bytes)} free, so replicas stay over micro-steps"
        )


def _why_cache(limits: Limits, cache: float) -> str:
    if cache <= limits.host_bytes:
        return f"host cache of {_gib(cache)} a node fits into {_gib(limits.host_bytes)}"
    return (
        f"no host cache: it would take {_gib(cache)} of a node's {_gib(limits.host_bytes)}; "
        "copies come from other ranks only"
    )


def _why_hiding(limits: Limits, tokens: int) -> str:
    verdict = "hidden" if limits.tokens >= tokens else "partly exposed: take larger micro-steps"
    return (
        f"one copy a layer is hidden under a forward pass from {tokens} tokens a rank; "
        f"at {limits.tokens} tokens copies are {verdict}"
    )


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def _gib(nbytes: float) -> str:
    return f"{nbytes / _GIB:.1f} GiB"
