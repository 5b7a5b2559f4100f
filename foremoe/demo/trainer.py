"""One rank's training: warm-up, then RL steps whose recompute and update run twice."""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Sequences
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from foremoe.demo import grpo, task
from foremoe.demo.options import DemoOptions
from foremoe.demo.schedule import Schedule
from foremoe.demo.sequence import Batch, Sequence
from foremoe.demo.snapshot import local
from foremoe.routing.replay import RoutingReplay
from foremoe.training.micro_step import MicroStepRecord
from foremoe.training.session import RankSession
from foremoe.vocabulary import Stage


@dataclass(slots=True)
class StageResult:
    """One stage of one run on this rank: wall time, and this process's time on a processor."""

    seconds: float
    records: list[MicroStepRecord]
    processor_seconds: float


@dataclass(slots=True)
class RunResult:
    """Recompute and update of one RL step. losses: one per mini-batch; gradients: local parts."""

    stages: dict[Stage, StageResult] = field(default_factory=dict)
    old_log_probs: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)


class Trainer:
    """Model, optimizer, session and replay of one rank."""

    def __init__(
        self,
        options: DemoOptions,
        rank: int,
        model: nn.Module,
        session: RankSession,
        replay: RoutingReplay,
    ) -> None:
        assert isinstance(model, FSDPModule), "loaded with fsdp_size, so FSDP wraps it"
        self.options = options
        self.rank = rank
        self.model: nn.Module = model
        self.sharding: FSDPModule = model
        self.session = session
        self.replay = replay
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.warmup_learning_rate, weight_decay=0.0, fused=True
        )

    def begin_rl(self) -> None:
        """The warm-up is over: from here on smaller steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate

    def warm_up(self, generator: np.random.Generator) -> float:
        """One supervised step on fresh problems with free routing; returns the mean loss."""
        examples = [
            _example(task.draw(generator), self.replay)
            for _ in range(self.options.warmup_sequences_per_rank)
        ]
        batch = Batch.of(examples)
        with self.replay.record(batch.present.reshape(-1)):
            losses = -grpo.log_probs(self.model, batch) * batch.trained
        loss = losses.sum() / batch.trained.sum()
        loss.backward()
        self._optimizer_step()
        return _mean_over_ranks(loss.item())

    def run(self, step: int, recompute: Schedule, update: Schedule, balanced: bool) -> RunResult:
        """Recompute and update of one RL step; weights and optimizer state move on."""
        result = RunResult()
        if balanced:
            self.session.weights_changed()
        with self._timed(result, step, Stage.RECOMPUTE, balanced):
            self._keep_gathered(True)  # no optimizer step before update
            for index, ranks in enumerate(recompute):
                with self.session.micro_step(index):
                    self._recompute(ranks[self.rank], result)
        with self._timed(result, step, Stage.UPDATE, balanced):
            size = self.options.micro_steps_per_mini_batch
            for first in range(0, len(update), size):
                self._mini_batch(first, update[first : first + size], balanced, result)
        return result

    @torch.no_grad()
    def _recompute(self, sequences: Sequences[Sequence], result: RunResult) -> None:
        batch = Batch.of(sequences)
        with self.replay.replay(batch.expert_ids):
            log_probs = grpo.log_probs(self.model, batch)
        for row, sequence in enumerate(sequences):
            sequence.old_log_probs = log_probs[row, batch.trained[row]].numpy()
        result.old_log_probs.append(log_probs * batch.trained)

    def _mini_batch(
        self, first: int, micro_steps: Schedule, balanced: bool, result: RunResult
    ) -> None:
        tokens = sum(s.answer_length for ranks in micro_steps for r in ranks for s in r)
        loss = 0.0
        last = first + len(micro_steps) - 1
        for index, ranks in enumerate(micro_steps, start=first):
            self._keep_gathered(index != last)
            with self.session.micro_step(index):
                loss += self._backward(ranks[self.rank], tokens / self.options.ranks)
        result.losses.append(_mean_over_ranks(loss))
        result.gradients.append(self._gradients())
        self._optimizer_step()
        if balanced:
            self.session.weights_changed()

    def _keep_gathered(self, keep: bool) -> None:
        """Gather weights and reduce gradients once a mini-batch, as accumulation allows."""
        self.sharding.set_requires_gradient_sync(not keep)
        self.sharding.set_reshard_after_forward(not keep)
        self.sharding.set_reshard_after_backward(not keep)

    def _backward(self, sequences: Sequences[Sequence], tokens: float) -> float:
        batch = Batch.of(sequences)
        with self.replay.replay(batch.expert_ids):
            new = grpo.log_probs(self.model, batch)
        old = torch.zeros_like(new)
        for row, sequence in enumerate(sequences):
            old[row, batch.trained[row]] = torch.from_numpy(sequence.old_log_probs).to(old.dtype)
        loss = grpo.policy_loss(new, old, batch, self.options.clip, tokens)
        loss.backward()
        return loss.item()

    def _gradients(self) -> list[Tensor]:
        """This rank's part of every gradient; parameters without one count as zero."""
        return [
            torch.zeros_like(local(p)) if p.grad is None else local(p.grad)
            for p in self.model.parameters()
        ]

    def _optimizer_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _timed(self, result: RunResult, step: int, stage: Stage, balanced: bool) -> Iterator[None]:
        """All ranks start together; the stage has ended when the last rank is done."""
        dist.barrier()
        start, processor_start = time.perf_counter(), time.process_time()
        with self.session.stage(step, stage, balanced=balanced) as run:
            yield
        dist.barrier()
        result.stages[stage] = StageResult(
            time.perf_counter() - start, run.records, time.process_time() - processor_start
        )


def _example(problem: task.Problem, replay: RoutingReplay) -> Sequence:
    tokens = np.concatenate([problem.prompt, problem.answer])
    no_routing = np.full((len(tokens) - 1, len(replay.layers), replay.top_k), -1, np.int16)
    return Sequence("", tokens, len(problem.prompt), no_routing, 1.0)


def _mean_over_ranks(value: float) -> float:
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total.item()) / dist.get_world_size()
