"""Prices of the presets beside a GPU: expert compute and copies, predicted and measured.

    python -m benchmarks.simulation_gpu [--cluster h100] [--models qwen3-30b-a3b ...]

Without a CUDA device it says so and measures nothing. Expert compute is one rank's share of a layer
at eight ranks, every expert with equally many pairs, as two batched products around the gate.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.table import rows
from foremoe.planner.cost import PICOSECONDS
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.vocabulary import Stage

RANKS = 8
PAIRS = (16, 64, 256, 1024)  # of an expert
REPEATS = 20


def main() -> None:
    """Measure if there is a device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cluster", default="h100")
    parser.add_argument("--models", nargs="+", default=["qwen3-30b-a3b", "qwen3-235b-a22b"])
    arguments = parser.parse_args()
    print("\n".join(report(arguments.cluster, arguments.models)))


def report(cluster: str, models: Sequence[str]) -> list[str]:
    """A table in Markdown, or one line that says why there is none."""
    if not torch.cuda.is_available():
        return ["GPU prices: skipped, no CUDA device here"]
    cells = [
        [name, what, f"{1e6 * predicted:.0f} µs", f"{1e6 * measured:.0f} µs",
         f"{100 * (predicted / measured - 1):+.0f}%"]
        for name in models
        for what, predicted, measured in [*_compute(cluster, name), _host_copy(cluster, name)]
    ]  # fmt: skip
    return rows(["model", torch.cuda.get_device_name(), "predicted", "measured", "error"], cells)


def _compute(cluster: str, name: str) -> list[tuple[str, float, float]]:
    model = model_preset(name)
    cost = cost_model(model, cluster_preset(cluster), Stage.RECOMPUTE)
    experts, hidden, width = model.experts // RANKS, model.hidden, model.expert_intermediate
    draw = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
    gate_up, down = draw(experts, hidden, 2 * width), draw(experts, width, hidden)
    found = []
    for pairs in PAIRS:
        inputs = draw(experts, pairs, hidden)

        def run(inputs: torch.Tensor = inputs) -> None:
            gate, up = (inputs @ gate_up).chunk(2, dim=-1)
            torch.bmm(F.silu(gate) * up, down)

        expert = max(cost.read, cost.intercept + cost.pair * pairs)
        predicted = (cost.launch + experts * expert) / PICOSECONDS
        found.append((f"{experts} experts, {pairs} pairs each", predicted, _seconds(run)))
    return found


def _host_copy(cluster: str, name: str) -> tuple[str, float, float]:
    model = model_preset(name)
    cost = cost_model(model, cluster_preset(cluster), Stage.RECOMPUTE)
    source = torch.zeros(model.expert_bytes, dtype=torch.uint8).pin_memory()
    slot = torch.zeros(model.expert_bytes, dtype=torch.uint8, device="cuda")
    measured = _seconds(lambda: slot.copy_(source, non_blocking=True))
    return "one expert from pinned memory", cost.host_copy / PICOSECONDS, measured


def _seconds(run: Callable[[], object]) -> float:
    """Median by the device's clock, after three to warm up."""
    times = []
    for _ in range(REPEATS + 3):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(statistics.median(times[3:]))


if __name__ == "__main__":
    main()
