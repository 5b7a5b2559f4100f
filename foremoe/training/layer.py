"""A plain torch MoE layer on ForeMoE: the readable example of how to attach one's own model.

layer = MoELayer(layer_id, hidden_size, expert_size, num_experts, top_k, group)
session = open_session([layer.home_experts()], group, AttachOptions(address=...))
layer.session = session
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from foremoe.training.expert_parallel import LayerWork, run_experts
from foremoe.training.home_experts import HomeExperts
from foremoe.training.session import RankSession
from foremoe.training.split_table import Slots, SplitTable, contiguous_home


class MoELayer(nn.Module):
    """Top-k routed, silu-gated experts; this rank holds its share of them (contiguous homes)."""

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        expert_size: int,
        num_experts: int,
        top_k: int,
        group: dist.ProcessGroup,
    ) -> None:
        super().__init__()
        ranks = group.size()
        owned = num_experts // ranks
        self.layer = layer
        self.top_k = top_k
        self.group = group
        self.session: RankSession | None = None
        self.owned = range(dist.get_rank(group) * owned, (dist.get_rank(group) + 1) * owned)
        self.router = nn.Linear(hidden_size, num_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(owned, 2 * expert_size, hidden_size))
        self.down = nn.Parameter(torch.empty(owned, hidden_size, expert_size))
        self._home_experts: HomeExperts | None = None
        slots = Slots(ranks, owned, 0)
        table = SplitTable(slots, contiguous_home(num_experts, ranks))
        self._at_home = LayerWork.at_home(slots, table)

    def home_experts(self) -> HomeExperts:
        """This rank's experts, for ``open_session``."""
        if self._home_experts is None:  # once: it knows where homes have moved since
            parameters = {"gate_up": self.gate_up, "down": self.down}
            self._home_experts = HomeExperts(self.layer, parameters, tuple(self.owned), module=self)
        return self._home_experts

    def forward(self, hidden: Tensor, expert_ids: Tensor | None = None) -> Tensor:
        """``hidden [T, H]`` -> ``[T, H]``; ``expert_ids [T, K]`` replays a routing."""
        scores = F.softmax(self.router(hidden), dim=-1)
        if expert_ids is None:
            expert_ids = scores.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, expert_ids)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        work = self._at_home if self.session is None else self.session.layer_work(self.layer)
        home = {"gate_up": self.gate_up, "down": self.down}
        return run_experts(hidden, expert_ids, weights, home, work, self.group)
