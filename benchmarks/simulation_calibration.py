"""What one expert layer takes on this machine: the prices that the simulator is to reckon with.

The layer as training runs it (``run_experts``: split, all-to-all, experts, all-to-all, sum) on
all ranks at once, with made-up routings of known load:

    own      every pair stays on its rank
    across   every pair travels to the next rank, all ranks compute alike
    first    every pair goes to the first rank, which computes them all

at several token counts. A time is then fit as

    latency + own pairs + busiest rank's computed pairs + busiest rank's travelling pairs,

each with its price. Weights are copied as replicas are: from shared memory, and by gloo.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.distributed as dist

from foremoe.demo.options import DemoOptions
from foremoe.training.expert_parallel import LayerWork, run_experts
from foremoe.training.split_table import Slots, SplitTable, contiguous_home

REPEATS = 2
COPIES = 8

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class LayerPrices:
    """Seconds: fixed, and for each pair of a rank, computed by the busiest, travelling."""

    latency: float
    own: float
    computed: float
    travelling: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """forward: of one layer; both: forward and backward. Bandwidths in bytes per second."""

    forward: LayerPrices
    both: LayerPrices
    host_bytes_per_second: float
    peer_bytes_per_second: float


def typical(found: Sequence[Calibration]) -> Calibration:
    """The median of every price."""
    return Calibration(
        _typical([c.forward for c in found]),
        _typical([c.both for c in found]),
        statistics.median(c.host_bytes_per_second for c in found),
        statistics.median(c.peer_bytes_per_second for c in found),
    )


def _typical(found: Sequence[LayerPrices]) -> LayerPrices:
    return LayerPrices(*np.median([astuple(prices) for prices in found], axis=0).tolist())


def calibrate(options: DemoOptions, tokens: int, clock: Clock) -> Calibration:
    """Measure on all ranks together; ``tokens`` is the largest count a rank has."""
    layer = _Layer(options, clock)
    nbytes = sum(tensor[0].numel() * tensor.element_size() for tensor in layer.home.values())
    return Calibration(
        _fit(layer, tokens, backward=False),
        _fit(layer, tokens, backward=True),
        nbytes / _seconds(_host_copies(nbytes), clock) * COPIES,
        nbytes / _seconds(_peer_copies(nbytes), clock) * COPIES,
    )


class _Layer:
    """One rank's experts and a routing for each load."""

    def __init__(self, options: DemoOptions, clock: Clock) -> None:
        self.clock = clock
        self.ranks, self.rank = options.ranks, dist.get_rank()
        self.owned = options.experts // options.ranks
        self.top_k, self.hidden = options.top_k, options.hidden_size
        sizes = {
            "gate_up": (self.owned, 2 * options.expert_size, options.hidden_size),
            "down": (self.owned, options.hidden_size, options.expert_size),
        }
        self.home = {
            name: (torch.randn(size) * 0.05).requires_grad_() for name, size in sizes.items()
        }
        slots = Slots(self.ranks, self.owned, 0)
        table = SplitTable(slots, contiguous_home(options.experts, self.ranks))
        self.work = LayerWork.at_home(slots, table)

    def run(self, tokens: int, target: int, *, backward: bool) -> Callable[[], None]:
        """``tokens`` of this rank to experts of rank ``target``."""
        hidden = torch.randn(tokens, self.hidden, requires_grad=True)
        weights = torch.full((tokens, self.top_k), 1.0 / self.top_k)
        chosen = torch.arange(tokens * self.top_k).view(tokens, self.top_k) % self.owned
        chosen += target * self.owned
        group = dist.group.WORLD
        assert group is not None, "the ranks have met"

        def run() -> None:
            with torch.set_grad_enabled(backward):
                output = run_experts(hidden, chosen, weights, self.home, self.work, group)
            if backward:
                output.sum().backward()

        return run


def _fit(layer: _Layer, tokens: int, *, backward: bool) -> LayerPrices:
    """Least squares over routings and token counts, each by its relative error."""
    rows, seconds = [], []
    for count in (tokens // 3, tokens):
        pairs = count * layer.top_k
        for target, computed, travelling in (
            (layer.rank, pairs, 0),
            ((layer.rank + 1) % layer.ranks, pairs, pairs),
            (0, layer.ranks * pairs, (layer.ranks - 1) * pairs),
        ):
            rows.append([1.0, pairs, computed, travelling])
            seconds.append(_seconds(layer.run(count, target, backward=backward), layer.clock))
    weight = 1.0 / np.array(seconds)
    found = np.linalg.lstsq(np.array(rows) * weight[:, None], np.ones(len(rows)), rcond=None)[0]
    return LayerPrices(*np.maximum(found, 0.0).tolist())


def _host_copies(nbytes: int) -> Callable[[], None]:
    source = torch.zeros(nbytes * COPIES, dtype=torch.uint8).share_memory_()
    slots = [torch.zeros(nbytes, dtype=torch.uint8) for _ in range(COPIES)]

    def run() -> None:
        for slot, part in zip(slots, source.split(nbytes), strict=True):
            slot.copy_(part)

    return run


def _peer_copies(nbytes: int) -> Callable[[], None]:
    """Both ways at once, as ranks exchange replicas."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    source = torch.zeros(nbytes, dtype=torch.uint8)
    slots = [torch.zeros(nbytes, dtype=torch.uint8) for _ in range(COPIES)]

    def run() -> None:
        works = [dist.isend(source, (rank + 1) % ranks, tag=tag) for tag in range(COPIES)]
        works += [dist.irecv(slot, (rank - 1) % ranks, tag=tag) for tag, slot in enumerate(slots)]
        for work in works:
            assert work is not None, "this rank is in the group"
            work.wait()

    return run


def _seconds(run: Callable[[], None], clock: Clock) -> float:
    """Median over repeats of the slowest rank's time, after one to warm up."""
    run()
    times = []
    for _ in range(REPEATS):
        dist.barrier()
        begin = clock()
        run()
        taken = torch.tensor(clock() - begin, dtype=torch.float64)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        times.append(taken.item())
    return statistics.median(times)
