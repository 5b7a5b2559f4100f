"""Recompute and update of an RL step, balanced and unbalanced: wall time, paired and interleaved.

    python -m benchmarks.end_to_end [--pairs 10] [--json FILE]

Two training ranks of one thread each, a real daemon, a Qwen3-MoE in float32 through Transformers.
Routing is drawn per sequence and layer (Dirichlet, concentration 36, as real routing is
over-dispersed) around a layer heat that sends a given share of the pairs to the first rank's
experts, and replayed, so that both ways compute the same tokens at the same experts. Each pair runs
both ways from the same weights, in turns A B B A. Foresight and schedule are in before the clock
starts, as they are in a real step, where they arrive during the rollout.

``speedup`` is unbalanced / balanced seconds; ``balance alone`` is what the busiest ranks' token
counts would allow if expert compute were all there is.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks.pairing import Ratio, ratio
from benchmarks.record import Record
from foremoe.client.controller import ControllerClient
from foremoe.demo.comparison import compare
from foremoe.demo.daemon import Daemon
from foremoe.demo.options import DemoOptions
from foremoe.demo.rank_main import EP_GROUP, join
from foremoe.demo.schedule import message, recompute_schedule, update_schedule
from foremoe.demo.sequence import Sequence
from foremoe.demo.snapshot import Snapshot
from foremoe.demo.task import VOCABULARY
from foremoe.demo.trainer import RunResult, Trainer
from foremoe.vocabulary import Stage

OPTIONS = DemoOptions(
    dtype="float32", hidden_size=256, expert_size=1024, prompts=12, samples_per_prompt=6
)
TOKENS = 128
CONCENTRATION = 36.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10, help="pairs of runs per share")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.5, 0.6, 0.7, 0.8],
        help="shares of the pairs that go to the first rank's experts",
    )
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    settings = {"options": OPTIONS.record(), "tokens": TOKENS, "pairs": arguments.pairs}
    record = Record("end_to_end", settings)
    figures = measure(arguments.pairs, arguments.shares)
    Console().print(table(figures))
    if arguments.json:
        record.write(arguments.json, figures)


def measure(pairs: int, shares: list[float]) -> list[dict[str, Any]]:
    """One entry per share and stage."""
    figures: list[dict[str, Any]] = on_ranks(run_rank, pairs, shares)
    return figures


def on_ranks(target: Callable[..., None], *arguments: Any) -> Any:
    """Run ``target(rank, folder, address, *arguments, answer)`` on all ranks, beside a daemon.

    Returns what rank 0 sends as its answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, answer = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as name, Daemon(Path(name)) as daemon:
        ranks = [
            context.Process(target=target, args=(r, Path(name), daemon.address, *arguments, answer))
            for r in range(OPTIONS.ranks)
        ]
        for process in ranks:
            process.start()
        answer.close()
        try:
            return receiver.recv()
        finally:
            for process in ranks:
                process.join(timeout=30)
                process.kill()


def run_rank(
    rank: int, folder: Path, address: str, pairs: int, shares: list[float], answer: Any
) -> None:
    trainer = join(rank, OPTIONS, folder, address)
    controller = ControllerClient(address)
    figures = []
    for index, share in enumerate(shares):
        figures += measure_share(trainer, controller, index * 1000, share, pairs)
    if rank == 0:
        answer.send(figures)
    trainer.session.close()
    dist.barrier()
    dist.destroy_process_group()


def measure_share(
    trainer: Trainer, controller: ControllerClient, first_step: int, share: float, pairs: int
) -> list[dict[str, Any]]:
    compared = []
    for pair in range(pairs + 1):
        results = run_pair(
            trainer, controller, first_step + pair, share, balanced_first=pair % 2 == 0
        )
        if pair > 0:  # the first one warms up
            compared.append(compare(results[True], results[False]))
    return [stage_figures(share, stage, compared) for stage in (*map(str, Stage), "both")]


def run_pair(
    trainer: Trainer,
    controller: ControllerClient,
    step: int,
    share: float,
    *,
    balanced_first: bool,
) -> dict[bool, RunResult]:
    """One step both ways, from the same weights."""
    sequences = draw_sequences(step, share)
    announce(trainer, controller, step, sequences)
    schedules = recompute_schedule(sequences, OPTIONS), update_schedule(sequences, OPTIONS)
    results = {}
    for balanced in (balanced_first, not balanced_first):
        state = Snapshot(trainer.model, trainer.optimizer)
        results[balanced] = trainer.run(step, *schedules, balanced)
        state.restore()
    return results


def draw_sequences(step: int, share: float) -> list[Sequence]:
    """Random tokens whose routing sends ``share`` of the pairs to the first rank's experts."""
    generator = np.random.default_rng(step)
    experts, layers = OPTIONS.experts, OPTIONS.layers
    owned = experts // OPTIONS.ranks
    heat = generator.dirichlet(np.full(experts, 8.0), layers)
    heat[:, :owned] *= share / heat[:, :owned].sum(axis=1, keepdims=True)
    heat[:, owned:] *= (1 - share) / heat[:, owned:].sum(axis=1, keepdims=True)
    sequences = []
    for index in range(OPTIONS.sequences):
        taste = np.stack([generator.dirichlet(CONCENTRATION * row) for row in heat]) + 1e-9
        noise = generator.gumbel(size=(TOKENS - 1, layers, experts)) + np.log(taste)
        sequences.append(
            Sequence(
                f"{step}-{index}",
                generator.integers(0, VOCABULARY, TOKENS),
                TOKENS // 3,
                np.argsort(-noise, axis=-1)[..., : OPTIONS.top_k].astype(np.int16),
                reward=0.0,
                advantage=float(generator.normal()),
            )
        )
    return sequences


def announce(
    trainer: Trainer, controller: ControllerClient, step: int, sequences: list[Sequence]
) -> None:
    """Foresight and schedules of one step, from rank 0."""
    if trainer.rank == 0:
        layers = trainer.replay.layers
        with controller.foresight_stream(step, layers, OPTIONS.experts, OPTIONS.top_k) as stream:
            for sequence in sequences:
                stream.add(sequence.sequence_id, expert_ids=sequence.expert_ids.astype(np.uint16))
        for stage, schedule, mini_batches in (
            (Stage.RECOMPUTE, recompute_schedule(sequences, OPTIONS), 1),
            (Stage.UPDATE, update_schedule(sequences, OPTIONS), OPTIONS.mini_batches),
        ):
            controller.submit_schedule(EP_GROUP, step, stage, message(schedule, mini_batches))
    dist.barrier()


def stage_figures(share: float, stage: str, compared: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios over pairs of one stage, or of both together."""
    names = [str(s) for s in Stage] if stage == "both" else [stage]

    def total(key: str) -> list[float]:
        return [sum(figures["stages"][name][key] for name in names) for figures in compared]

    return {
        "share": share,
        "stage": stage,
        "imbalance_before": float(np.mean(total("imbalance_before"))) / len(names),
        "imbalance_after": float(np.mean(total("imbalance_after"))) / len(names),
        "speedup": asdict(ratio(total("seconds_unbalanced"), total("seconds_balanced"))),
        "balance_alone": asdict(
            ratio(total("busiest_tokens_before"), total("busiest_tokens_after"))
        ),
        "exposed_share": float(
            np.mean(total("exposed_seconds")) / np.mean(total("seconds_balanced"))
        ),
        "seconds_balanced": float(np.median(total("seconds_balanced"))),
        "largest_gradient_difference": max(figures["gradient_difference"] for figures in compared),
        "degraded": sum(len(f["stages"][name]["degraded"]) for f in compared for name in names),
    }


def table(figures: list[dict[str, Any]]) -> Table:
    result = Table(title="unbalanced / balanced wall time, median [95% interval]")
    result.add_column("stage")
    for column in ("share", "imbalance", "speedup", "balance alone", "exposed", "degraded"):
        result.add_column(column, justify="right")
    for f in figures:
        result.add_row(
            f["stage"],
            f"{f['share']:.2f}",
            f"{f['imbalance_before']:.3f} -> {f['imbalance_after']:.3f}",
            str(Ratio(**f["speedup"])),
            f"{f['balance_alone']['ratio']:.3f}",
            f"{100 * f['exposed_share']:.2f}%",
            str(f["degraded"]),
        )
    return result


if __name__ == "__main__":
    main()
