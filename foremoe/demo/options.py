"""What the demo runs; everything has a default."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foremoe.errors import InvalidInputError

TIMELINE = "timeline"  # folder in which each process leaves its part


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Sizes are chosen so that expert compute dominates on a CPU, as it does in a real model.

    router_skew: how much larger the initial router weights of the first rank's experts are; 1 is
    an even start. Real models get skewed by their data; this one is too small for that.
    timeline: file for what ran when, on all ranks and in the daemon, as a Chrome trace.
    status: file for what the daemon knows at the end, for a report.
    """

    ranks: int = 2
    steps: int = 7
    warmup_steps: int = 40
    seed: int = 0
    dtype: str = "float32"
    hidden_size: int = 128
    expert_size: int = 1024
    layers: int = 4
    experts: int = 16
    top_k: int = 4
    router_skew: float = 12.0
    spare_slots: int = 2
    prompts: int = 32
    samples_per_prompt: int = 12
    mini_batches: int = 2
    micro_steps_per_mini_batch: int = 3
    warmup_sequences_per_rank: int = 32
    warmup_learning_rate: float = 1e-3
    learning_rate: float = 2e-4
    temperature: float = 1.0
    clip: float = 0.2
    plan_wait_seconds: float = 1.0
    kill_daemon_at_step: int | None = None
    json: Path | None = None
    timeline: Path | None = None
    status: Path | None = None

    def __post_init__(self) -> None:
        if self.ranks < 2 or self.experts % self.ranks:
            raise InvalidInputError(
                f"--ranks {self.ranks}: needs 2 or more ranks that divide {self.experts} experts; "
                "try 2, 4 or 8"
            )
        if self.steps < 1:
            raise InvalidInputError(f"--steps {self.steps}: needs at least 1")
        if not 1 <= self.router_skew <= 1e3:
            raise InvalidInputError(
                f"--router-skew {self.router_skew}: must lie in [1, 1000]; 1 is an even start"
            )
        if self.seed < 0:
            raise InvalidInputError(f"--seed {self.seed}: must not be negative")
        if not 1 <= self.spare_slots <= self.experts - self.experts // self.ranks:
            raise InvalidInputError(
                f"--spare-slots {self.spare_slots}: needs 1 to "
                f"{self.experts - self.experts // self.ranks}, the experts of other ranks"
            )
        kill = self.kill_daemon_at_step
        if kill is not None and not 0 <= kill < self.steps:
            raise InvalidInputError(
                f"--kill-daemon-at-step {kill}: steps are counted from 0 to {self.steps - 1}"
            )
        per_micro_step = self.ranks * self.mini_batches * self.micro_steps_per_mini_batch
        if self.sequences % per_micro_step:
            raise InvalidInputError(
                f"{self.sequences} sequences cannot be dealt evenly to {self.ranks} ranks "
                f"in {self.mini_batches} x {self.micro_steps_per_mini_batch} micro-steps; "
                "use 2 or 4 ranks"
            )

    @property
    def sequences(self) -> int:
        return self.prompts * self.samples_per_prompt

    @property
    def recompute_micro_steps(self) -> int:
        """Half as many as update has, where that divides evenly."""
        update = self.mini_batches * self.micro_steps_per_mini_batch
        return update // 2 if update % 2 == 0 else update

    def record(self) -> dict[str, Any]:
        """For the JSON report."""
        return {key: str(v) if isinstance(v, Path) else v for key, v in asdict(self).items()}
