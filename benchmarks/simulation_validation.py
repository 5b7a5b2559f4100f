"""The simulator against runs of the real thing: predicted and measured seconds of each stage.

    python -m benchmarks.simulation_validation [--rounds 3] [--processor-time] [--json FILE]

Measured are the runs of ``benchmarks.end_to_end``: two ranks, real daemon, engine and model. For
the prediction the simulator gets the same routing and makes the same plans; its prices come from

* one expert layer alone, with made-up routings (``benchmarks.simulation_calibration``): pairs that
  compute, pairs that travel, copies;
* the share of 0.5: what a stage takes beside its experts (attention, FSDP, optimizer), and what
  balancing adds whatever the routing (agreement, publishing weights).

All other shares are predicted, nothing is fit to them. The machine must have nothing else to do, or
wall time says nothing; ``--processor-time`` takes that of the slower rank instead, which shows what
the ranks do but not how they wait. Where there is a CUDA device, the
presets' prices are measured as well (``benchmarks.simulation_gpu``).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from benchmarks import simulation_gpu
from benchmarks.end_to_end import OPTIONS, TOKENS, draw_sequences, on_ranks, run_pair
from benchmarks.record import Record
from benchmarks.simulation_calibration import Calibration, LayerPrices, calibrate, typical
from benchmarks.table import rows
from foremoe.client.controller import ControllerClient
from foremoe.demo.rank_main import join
from foremoe.demo.schedule import Schedule, recompute_schedule, update_schedule
from foremoe.demo.trainer import StageResult
from foremoe.planner.cost import PICOSECONDS, CostModel
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.plan import Plan
from foremoe.planner.policies import POLICIES
from foremoe.planner.preset import ClusterPreset, ModelPreset
from foremoe.planner.problem import StageProblem, Topology
from foremoe.runtime.config import RuntimeConfig
from foremoe.simulation.cluster import Machine
from foremoe.simulation.stage import simulate_stage
from foremoe.vocabulary import Stage

CALIBRATED = 0.5
PREDICTED = (0.6, 0.7, 0.8)
WAYS = {False: "unbalanced", True: "balanced"}
FLOAT32_BYTES = 4
GPU_MODELS = ("qwen3-30b-a3b", "qwen3-235b-a22b")


@dataclass(frozen=True, slots=True)
class Run:
    """One stage as it was measured; step and share say its routing."""

    share: float
    step: int
    stage: Stage
    balanced: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredMachine(Machine):
    """A machine whose prices were measured rather than taken from its presets."""

    forward_cost: CostModel
    update_cost: CostModel

    def forward(self) -> CostModel:
        return self.forward_cost

    def update(self) -> CostModel:
        return self.update_cost


@dataclass(frozen=True, slots=True)
class Prediction:
    """Median seconds over the rounds."""

    share: float
    stage: str
    way: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0


def main() -> None:
    """Measure, predict, print both, write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of every share, both ways")
    parser.add_argument(
        "--processor-time", action="store_true", help="of the slower rank, not wall time"
    )
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    record = Record("simulation_validation", {"options": OPTIONS.record(), "tokens": TOKENS})
    calibration, runs = on_ranks(_run_rank, arguments.rounds, arguments.processor_time)
    predictions = predict(calibration, runs)
    print("\n".join([*table(predictions), *simulation_gpu.report("h100", GPU_MODELS)]))
    if arguments.json:
        record.write(
            arguments.json,
            {
                "calibration": asdict(calibration),
                "predictions": [{**asdict(p), "error": p.error} for p in predictions],
                "runs": [asdict(run) for run in runs],
            },
        )


def _run_rank(
    rank: int, folder: Path, address: str, rounds: int, processor_time: bool, answer: Any
) -> None:
    """Prices and every share in each round, so that a change of the machine's load meets all."""
    trainer = join(rank, OPTIONS, folder, address)
    controller = ControllerClient(address)
    clock = time.process_time if processor_time else time.perf_counter
    largest = OPTIONS.sequences // OPTIONS.recompute_micro_steps // OPTIONS.ranks
    calibrations, runs = [], []
    run_pair(trainer, controller, 0, CALIBRATED, balanced_first=True)  # to warm up
    for index in range(rounds):
        calibrations.append(calibrate(OPTIONS, largest * (TOKENS - 1), clock))
        for place, share in enumerate((CALIBRATED, *PREDICTED)):
            step = 1 + index * (1 + len(PREDICTED)) + place
            even = (index + place) % 2 == 0
            results = run_pair(trainer, controller, step, share, balanced_first=even)
            runs += [
                Run(share, step, stage, balanced, _slowest(result.stages[stage], processor_time))
                for balanced, result in results.items()
                for stage in Stage
            ]
    if rank == 0:
        answer.send((typical(calibrations), runs))
    trainer.session.close()
    dist.barrier()
    dist.destroy_process_group()


def _slowest(result: StageResult, processor_time: bool) -> float:
    seconds = result.processor_seconds if processor_time else result.seconds
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def predict(calibration: Calibration, runs: Sequence[Run]) -> list[Prediction]:
    """Fix what the shares have in common at the calibrated one, predict all."""
    layers_alone = _machine(calibration, dict.fromkeys(Stage, 0.0))
    other = {stage: _missing(layers_alone, runs, stage, balanced=False) for stage in Stage}
    machine = _machine(calibration, other)
    balancing = {stage: _missing(machine, runs, stage, balanced=True) for stage in Stage}
    predictions = []
    for share, stage, balanced in product((CALIBRATED, *PREDICTED), Stage, WAYS):
        those = [r for r in runs if (r.share, r.stage, r.balanced) == (share, stage, balanced)]
        extra = balancing[stage] if balanced else 0.0
        predicted = _median([_seconds(machine, run) for run in those]) + extra
        measured = _median([run.seconds for run in those])
        predictions.append(Prediction(share, stage, WAYS[balanced], measured, predicted))
    return predictions


def _missing(machine: Machine, runs: Sequence[Run], stage: Stage, *, balanced: bool) -> float:
    """Seconds that the simulator lacks at the calibrated share."""
    wanted = CALIBRATED, stage, balanced
    those = [run for run in runs if (run.share, run.stage, run.balanced) == wanted]
    return max(_median([run.seconds - _seconds(machine, run) for run in those]), 0.0)


def _machine(calibration: Calibration, other: dict[Stage, float]) -> MeasuredMachine:
    """other: seconds of a stage beside its experts."""
    model = ModelPreset(
        layers=OPTIONS.layers,
        experts=OPTIONS.experts,
        top_k=OPTIONS.top_k,
        hidden=OPTIONS.hidden_size,
        expert_intermediate=OPTIONS.expert_size,
        weight_bytes=FLOAT32_BYTES,
        other_weights=1,
        gemm_efficiency=1.0,
        intercept_share=1.0,
    )
    cluster = ClusterPreset(
        ranks_per_node=OPTIONS.ranks,
        flops_per_second=1.0,
        hbm_bytes_per_second=1.0,
        peer_bytes_per_second=calibration.peer_bytes_per_second,
        host_bytes_per_second=calibration.host_bytes_per_second,
        network_bytes_per_second=1.0,
        launch_seconds=1.0,
        latency_seconds=1.0,
    )
    own_pairs = OPTIONS.sequences * (TOKENS - 1) * OPTIONS.top_k * OPTIONS.layers / OPTIONS.ranks
    return MeasuredMachine(
        model,
        cluster,
        OPTIONS.ranks,
        OPTIONS.ranks,
        _cost(calibration.forward, other[Stage.RECOMPUTE] / own_pairs),
        _cost(calibration.both, other[Stage.UPDATE] / own_pairs),
    )


def _cost(prices: LayerPrices, other_pair: float) -> CostModel:
    """A layer's fixed time and own pairs are part of what ``other`` measures."""
    nothing = dict.fromkeys(CostModel.__dataclass_fields__, 0)
    return replace(
        CostModel(**nothing),
        pair=round(prices.computed * PICOSECONDS),
        node_pair=round(prices.travelling * PICOSECONDS),
        other_pair=round(other_pair * PICOSECONDS),
    )


def _seconds(machine: Machine, run: Run) -> float:
    """The simulator's answer for one measured stage."""
    backward = run.stage is Stage.UPDATE
    deal = update_schedule if backward else recompute_schedule
    schedule = deal(draw_sequences(run.step, run.share), OPTIONS)
    per_mini_batch = OPTIONS.micro_steps_per_mini_batch if backward else len(schedule)
    mini_batch = (np.arange(len(schedule)) // per_mini_batch).astype(np.int32)
    plans = _plans(_load(schedule), mini_batch, balanced=run.balanced)
    return simulate_stage(machine, plans, mini_batch, backward=backward).seconds


def _plans(load: NDArray[np.int64], mini_batch: NDArray[np.int32], *, balanced: bool) -> list[Plan]:
    """As the daemon makes them."""
    defaults = RuntimeConfig("")
    problem = StageProblem(
        load,
        contiguous_homes(OPTIONS.layers, OPTIONS.experts, OPTIONS.ranks),
        mini_batch,
        Topology(OPTIONS.ranks, OPTIONS.ranks),
        OPTIONS.spare_slots,
        defaults.target,
    )
    return list(POLICIES[defaults.policy if balanced else "none"](problem))


def _load(schedule: Schedule) -> NDArray[np.int64]:
    """int64 ``[M, L, P, E]``."""
    load = np.zeros((len(schedule), OPTIONS.layers, OPTIONS.ranks, OPTIONS.experts), np.int64)
    for micro_step, ranks in enumerate(schedule):
        for rank, sequences in enumerate(ranks):
            for sequence in sequences:
                for layer in range(OPTIONS.layers):
                    load[micro_step, layer, rank] += np.bincount(
                        sequence.expert_ids[:, layer].ravel(), minlength=OPTIONS.experts
                    )
    return load


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def table(predictions: Sequence[Prediction]) -> list[str]:
    """In Markdown."""
    return rows(
        ["share", "stage", "way", "measured", "predicted", "error", ""],
        [
            [
                f"{p.share:.1f}",
                p.stage,
                p.way,
                f"{p.measured:.3f} s",
                f"{p.predicted:.3f} s",
                f"{100 * p.error:+.1f}%",
                "calibrated" if p.share == CALIBRATED else "predicted",
            ]
            for p in predictions
        ],
    )


if __name__ == "__main__":
    main()
