"""A number of ranks of a cluster preset, and what a model costs on them."""

import re
from dataclasses import dataclass

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import CostModel
from foremoe.planner.preset import (
    GRADIENT_BYTES,
    ClusterPreset,
    ModelPreset,
    cluster_preset,
    cost_model,
    model_preset,
)
from foremoe.planner.problem import Topology
from foremoe.transfer.schedule.links import Links, slab_ns
from foremoe.vocabulary import Stage

_RANKS = re.compile(r"(?P<name>.+?)x(?P<ranks>\d+)$")


@dataclass(frozen=True, slots=True)
class Machine:
    """``ranks`` GPUs in EP groups of ``ep_size``, training ``model``."""

    model: ModelPreset
    cluster: ClusterPreset
    ranks: int
    ep_size: int

    def __post_init__(self) -> None:
        if self.ep_size < 2 or self.ranks % self.ep_size:
            raise InvalidInputError(
                f"--ep-size {self.ep_size}: must be at least 2 and divide {self.ranks} ranks"
            )
        if self.model.experts % self.ep_size:
            raise InvalidInputError(
                f"--ep-size {self.ep_size}: does not divide {self.model.experts} experts"
            )

    @property
    def groups(self) -> int:
        return self.ranks // self.ep_size

    @property
    def topology(self) -> Topology:
        return Topology(self.ep_size, min(self.cluster.ranks_per_node, self.ep_size))

    @property
    def gradient_bytes(self) -> int:
        """Of one expert."""
        return self.model.expert_weights * GRADIENT_BYTES

    @property
    def links(self) -> Links:
        """What weight copies travel on: pulls inside one node, else messages, which can relay."""
        weights, cluster = self.model.expert_bytes, self.cluster
        return Links(
            self.topology,
            slab_ns(weights, cluster.host_bytes_per_second),
            slab_ns(weights, cluster.peer_bytes_per_second),
            slab_ns(weights, cluster.network_bytes_per_second),
            relay=self.topology.nodes > 1,
        )

    def forward(self) -> CostModel:
        return cost_model(self.model, self.cluster, Stage.RECOMPUTE)

    def update(self) -> CostModel:
        """Forward and backward together."""
        return cost_model(self.model, self.cluster, Stage.UPDATE)


def machine(model: str, cluster: str, ep_size: int | None) -> Machine:
    """From names such as ``qwen3-30b-a3b`` and ``h100x64``, or TOML files (``my.toml:64``).

    Raises InvalidInputError for names that are none, and sizes that do not fit.
    """
    name, colon, count = cluster.rpartition(":")
    if not colon:
        match = _RANKS.match(cluster)
        if match is None:
            raise InvalidInputError(
                f"--cluster {cluster!r}: expected a preset and a number of ranks, as in h100x64, "
                "or FILE.toml:RANKS"
            )
        name, count = match["name"], match["ranks"]
    if not count.isdigit() or int(count) < 2:
        raise InvalidInputError(f"--cluster {cluster!r}: {count!r} is no number of ranks above 1")
    ranks, preset, known = int(count), cluster_preset(name), model_preset(model)
    if ep_size is None:
        ep_size = _largest_ep_size(ranks, known.experts, preset.ranks_per_node)
    return Machine(known, preset, ranks, ep_size)


def _largest_ep_size(ranks: int, experts: int, ranks_per_node: int) -> int:
    """That of a node or less which divides ranks and experts."""
    for size in range(min(ranks, ranks_per_node), 1, -1):
        if ranks % size == 0 and experts % size == 0:
            return size
    raise InvalidInputError(
        f"no EP size up to the {ranks_per_node} ranks of a node divides {ranks} ranks and "
        f"{experts} experts; take another number of ranks"
    )
