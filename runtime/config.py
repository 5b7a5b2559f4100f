"""What a daemon is told when it starts."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import CostModel
from foremoe.planner.policies import HOME_POLICIES
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.rpc.credentials import Credentials
from foremoe.vocabulary import Stage

EVENT_LOOPS = ("auto", "uvloop", "asyncio")
NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """One daemon.

    address: unix socket path, or HOST:PORT.
    also_listen: HOST:PORT beside it, for followers and controllers of other nodes.
    join: HOST:PORT of the leader whose follower this daemon is; None plans itself.
    credentials: for mutual TLS on every HOST:PORT, without which it must be a loopback address; and
    the token that every call has to show. allowed_names: of client certificates; none for any.
    memory_limit_bytes: most bytes of foresight, schedules, loads and plans held at any time.
    max_steps: most unreleased steps.
    planning_workers: threads that plan; each plans one stage at a time.
    policy: name in planner.policies.HOME_POLICIES.
    target: the imbalance that suffices; None asks for the best balance, or with ``model`` for the
    least estimated time.
    model, cluster: presets by name or TOML file, which plans are priced with; no model, no prices.
    drain_seconds: how long running calls may go on after SIGTERM.
    event_loop: one of EVENT_LOOPS; auto takes uvloop where it is installed.
    metrics_port: HTTP port of /metrics and /healthz at metrics_host, 0 for any free one; None for
    no port at all.
    timeline: a folder for what was planned when, written as the daemon stops; None for no record.

    Raises InvalidInputError when a value is out of range.
    """

    address: str
    memory_limit_bytes: int = 4 << 30
    max_steps: int = 16
    planning_workers: int = 2
    policy: str = "foremoe"
    target: float | None = 1.02
    model: str | None = None
    cluster: str = "h100"
    drain_seconds: float = 5.0
    event_loop: str = "auto"
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    also_listen: str | None = None
    join: str | None = None
    credentials: Credentials = NO_CREDENTIALS
    allowed_names: tuple[str, ...] = ()
    timeline: Path | None = None

    def __post_init__(self) -> None:
        for field in ("memory_limit_bytes", "max_steps", "planning_workers"):
            if getattr(self, field) < 1:
                raise InvalidInputError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.policy not in HOME_POLICIES:
            raise InvalidInputError(
                f"policy: {self.policy!r} is none of {', '.join(sorted(HOME_POLICIES))}"
            )
        if self.target is not None and not 1.0 <= self.target < float("inf"):
            raise InvalidInputError(f"target: an imbalance is at least 1.0, got {self.target}")
        self.cost(Stage.UPDATE)
        if not 0 <= self.drain_seconds < float("inf"):
            raise InvalidInputError(
                f"drain_seconds: must not be negative, got {self.drain_seconds}"
            )
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise InvalidInputError(
                f"metrics_port: must lie in [0, 65535], got {self.metrics_port}"
            )
        if self.allowed_names and not self.credentials.has_tls:
            raise InvalidInputError("allowed_names: needs --tls-cert, --tls-key and --tls-ca")
        if self.event_loop not in EVENT_LOOPS:
            raise InvalidInputError(
                f"event_loop: {self.event_loop!r} is none of {', '.join(EVENT_LOOPS)}"
            )

    def summary(self) -> str:
        """Whom the daemon follows, or how it plans, for the log."""
        if self.join:
            return f"following {self.join}"
        prices = "" if self.model is None else f" by time of {self.model} on {self.cluster}"
        target = "" if self.target is None else f" to {self.target}"
        return f"policy {self.policy}{prices}{target}"

    def cost(self, stage: Stage) -> CostModel | None:
        """What a stage's plans are priced with. Raises InvalidInputError for an unknown preset."""
        return None if self.model is None else _prices(self.model, self.cluster, stage)

    def check_experts(self, ep_group: str, num_experts: int) -> None:
        """Raises InvalidInputError for a group of another model than the prices are for."""
        if self.model is not None and num_experts != model_preset(self.model).experts:
            raise InvalidInputError(
                f"EP group {ep_group[:80]!r} has {num_experts} experts a layer, but the daemon "
                f"plans for {self.model}, which has {model_preset(self.model).experts}; "
                "start it with the group's --model, or without one"
            )


@cache
def _prices(model: str, cluster: str, stage: Stage) -> CostModel:
    return cost_model(model_preset(model), cluster_preset(cluster), stage)
