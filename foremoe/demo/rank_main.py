"""What each training rank of the demo runs, as a process of its own."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from foremoe.client.controller import ControllerClient
from foremoe.demo import grpo, task
from foremoe.demo.comparison import compare
from foremoe.demo.foresight_sender import ForesightSender
from foremoe.demo.model import load_model, write_model
from foremoe.demo.options import TIMELINE, DemoOptions
from foremoe.demo.rollout import roll_out
from foremoe.demo.schedule import Schedule, load_of, message, recompute_schedule, update_schedule
from foremoe.demo.sequence import Sequence
from foremoe.demo.snapshot import Snapshot
from foremoe.demo.trainer import RunResult, Trainer
from foremoe.errors import ForemoeError
from foremoe.integrations.transformers import attach
from foremoe.training.attachment import AttachOptions
from foremoe.vocabulary import Stage

EP_GROUP = "demo"
Events = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)


def rank_main(rank: int, options: DemoOptions, folder: Path, address: str, events: Events) -> None:
    """Join the other ranks, train, and send figures to ``events`` (from rank 0 only)."""
    trainer = join(rank, options, folder, address)
    job = _Job(trainer, ControllerClient(address), events if rank == 0 else _ignore)
    job.warm_up()
    for step in range(options.steps):
        job.step(step)
    trainer.session.close()
    dist.barrier()
    dist.destroy_process_group()


def join(rank: int, options: DemoOptions, folder: Path, address: str) -> Trainer:
    """Meet the other ranks in ``folder``, load the model, attach it to the daemon."""
    warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # experts of tiny weight take many times as long
    disable_progress_bar()
    set_verbosity_error()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=options.ranks,
        timeout=timedelta(seconds=120),
    )
    if rank == 0:
        write_model(options, folder / "model")
    dist.barrier()
    model = load_model(options, folder / "model")
    attached = attach(
        model,
        AttachOptions(
            address=address,
            ep_group=EP_GROUP,
            spare_slots=options.spare_slots,
            plan_wait_seconds=options.plan_wait_seconds,
            timeline=None if options.timeline is None else folder / TIMELINE,
        ),
    )
    return Trainer(options, rank, model, attached.session, attached.replay)


class _Job:
    """The RL loop of one rank."""

    def __init__(self, trainer: Trainer, controller: ControllerClient, events: Events) -> None:
        self.trainer = trainer
        self.options = trainer.options
        self.rank = trainer.rank
        self.controller = controller
        self.events = events
        self.problems = np.random.default_rng([self.options.seed, 1])
        self.sampling = torch.Generator().manual_seed(self.options.seed * 1000 + self.rank)

    def warm_up(self) -> None:
        """Supervised steps, so that the rollout sometimes earns a reward to learn from."""
        generator = np.random.default_rng([self.options.seed, 2, self.rank])
        for step in range(self.options.warmup_steps):
            loss = self.trainer.warm_up(generator)
            self.events({"event": "warmup", "step": step, "loss": loss})
        self.trainer.begin_rl()

    def step(self, step: int) -> None:
        """One RL step: rollout, then recompute and update in both ways from the same state."""
        self.events({"event": "rollout", "step": step})
        sequences = self._roll_out(step)
        recompute = recompute_schedule(sequences, self.options)
        update = update_schedule(sequences, self.options)
        with self._submitting():
            if self.rank == 0:
                self.controller.submit_schedule(
                    EP_GROUP, step, Stage.RECOMPUTE, message(recompute, 1)
                )
                self.controller.submit_schedule(
                    EP_GROUP, step, Stage.UPDATE, message(update, self.options.mini_batches)
                )
        balanced, unbalanced = self._both_ways(step, recompute, update)
        figures = compare(balanced, unbalanced)
        reward = float(np.mean([sequence.reward for sequence in sequences]))
        exact = float(np.mean([sequence.reward == 1.0 for sequence in sequences]))
        load = load_of(update, self.options.experts).tolist()
        told = {"event": "step", "step": step, "reward": reward, "exact": exact, "load": load}
        self.events({**told, **figures})
        with self._submitting():
            if self.rank == 0:
                self.controller.release_step(step)

    def _roll_out(self, step: int) -> list[Sequence]:
        """This rank samples its share of the prompts; all ranks get all sequences."""
        options = self.options
        drawn = [task.draw(self.problems) for _ in range(options.prompts)]
        mine = [
            (f"{step}-{prompt}-{sample}", drawn[prompt])
            for prompt in range(self.rank, options.prompts, options.ranks)
            for sample in range(options.samples_per_prompt)
        ]
        replay = self.trainer.replay
        sender = ForesightSender(
            self.controller, step, replay.layers, options.experts, replay.top_k
        )
        with sender:
            sampled = roll_out(
                self.trainer.model, replay, mine, options.temperature, self.sampling, sender
            )
        gathered: list[list[Sequence]] = [[] for _ in range(options.ranks)]
        dist.all_gather_object(gathered, sampled)
        sequences = [sequence for part in gathered for sequence in part]
        grpo.assign_advantages(sequences, options.samples_per_prompt)
        return sequences

    def _both_ways(
        self, step: int, recompute: Schedule, update: Schedule
    ) -> tuple[RunResult, RunResult]:
        """Run balanced and unbalanced, in alternating order; training goes on from balanced."""
        trainer = self.trainer
        before = Snapshot(trainer.model, trainer.optimizer)
        results: dict[bool, RunResult] = {}
        for balanced in (True, False) if step % 2 == 0 else (False, True):
            before.restore()
            results[balanced] = trainer.run(step, recompute, update, balanced)
            if balanced:
                after = Snapshot(trainer.model, trainer.optimizer)
        after.restore()
        trainer.session.weights_changed()
        return results[True], results[False]

    @contextmanager
    def _submitting(self) -> Iterator[None]:
        """Calls to the daemon; a lost one only costs balance."""
        try:
            yield
        except ForemoeError as error:
            log.warning("the runtime did not take it, training goes on: %s", error)


def _ignore(event: dict[str, Any]) -> None:
    del event
