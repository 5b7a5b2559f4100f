"""A training job of two ranks with a leader, a follower and a controller, and faults in it.

Rank 0 talks to the leader, rank 1 and the controller to the follower, so that every message is
relayed somewhere. Whatever dies is started again, as torchrun and a process supervisor would.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

from foremoe.crash_points import CrashPoint
from foremoe.runtime.config import RuntimeConfig
from tests.faults.child import Child, SeenPoints, children
from tests.faults.clock import jump
from tests.faults.parts import controller_main, daemon_main, rank_main
from tests.faults.tmpfs import FILLER, fill
from tests.runtime.daemon_process import free_port
from tests.training.dense import Case

HANG_SECONDS = 60.0
TOLERANCE = 1e-10
STEPS = 2  # in which the fault happens; one more shows that balance is back
RANKS = ("rank 0", "rank 1")
DAEMONS = ("leader", "follower")
CLOCK = "clock"
DESCRIPTORS = 16  # of gRPC, which closes some late
ON_START = {  # passed when a process starts, so armed from its beginning
    CrashPoint.LISTENING,
    CrashPoint.REGISTERED,
    CrashPoint.STREAMING,
    CrashPoint.LEADER_FOUND,
    CrashPoint.CACHE_CREATED,
    CrashPoint.CACHE_ATTACHED,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to whom: a signal after a time, a crash point, or both.

    A victim that crashes at DRAINING has to be told to drain. The victim may also be the clock,
    which then jumps.
    """

    victim: str
    after_seconds: float | None = None
    crash_at: CrashPoint | None = None
    signal: Signals = SIGKILL
    jump_seconds: int = 0

    def __str__(self) -> str:
        when = "" if self.after_seconds is None else f" {self.after_seconds * 1000:.1f} ms in"
        where = "" if self.crash_at is None else f" at {self.crash_at}"
        if self.victim == CLOCK:
            return f"clock off by {self.jump_seconds} s{when}"
        return f"{self.signal.name} of {self.victim}{when}{where}"


NOTHING = Fault("nobody")
_NO_ROOM = "degraded: no host cache, peer path only"


class RanksLost(Exception):
    """A rank died, so the group has to start again."""


@dataclass
class Run:
    """The fault under way. due: when to signal the victim; struck: whether it has died of it."""

    fault: Fault
    due: float | None = None
    struck: bool = False
    degraded: int = 0
    troubles: list[str] = field(default_factory=list)


class Job:
    """Between ``start`` and ``close`` everything runs."""

    def __init__(self, folder: Path, caches: Path, seed: int) -> None:
        """folder: for sockets and logs; caches: on a tmpfs, empty."""
        self.seen = SeenPoints()
        self._folder = folder
        self._caches = caches
        self._case = Case(seed=seed, ranks=len(RANKS), mini_batches=STEPS + 1, micro_steps=2)
        self._port = free_port()
        self._children: dict[str, Child] = {}
        self._starts = 0
        self._step = 0
        self._descriptors: dict[int, int] = {}
        self._waiting_for: set[str] = set()
        self._run = Run(NOTHING)

    def start(self) -> None:
        for name in DAEMONS:
            (self._folder / name).mkdir(mode=0o700)
            self._start_daemon(name)
        self._start_controller()
        self._start_ranks()

    def run(self, fault: Fault) -> Run:
        """Train with the fault: same numbers, no hang, balance back, nothing left.

        Raises AssertionError, with what the processes said last, when any of that fails.
        """
        try:
            return self._run_checked(fault)
        except AssertionError as error:
            said = "\n".join(child.last_lines() for child in self._children.values())
            raise AssertionError(f"{fault}: {error}\n{said}") from error

    def run_without_room(self) -> None:
        """The tmpfs fills up under the job; ranks start again without room, and with room again."""
        fill(self._caches)
        self.run(NOTHING)
        self.run(Fault("rank 0", 0.0))
        assert _NO_ROOM in self._children["rank 0"].log.read_text()
        (self._caches / FILLER).unlink()
        self.run(Fault("rank 0", 0.0))

    def close(self) -> None:
        """End all; nothing may be left but locks and logs."""
        told = [self._children.pop(name) for name in (*RANKS, "controller")]
        for child in told:
            child.send(("close",))
        for child in told:
            child.process.join(HANG_SECONDS)
            assert child.process.exitcode == 0, child.last_lines()
        for name in DAEMONS:
            child = self._children.pop(name)
            code = child.end(SIGTERM)
            assert code == 0, f"{name} ended with {code}\n{child.last_lines()}"
            assert {path.name for path in (self._folder / name).iterdir()} == {"s.lock"}
        assert list(self._caches.iterdir()) == []
        assert children() == set()

    def kill(self) -> None:
        """End all at once, after a failure."""
        for child in self._children.values():
            child.process.kill()
            child.process.join()

    def _run_checked(self, fault: Fault) -> Run:
        run = self._run = Run(fault)
        first = self._step
        self._step += STEPS + 1
        try:
            self._arm(fault)
            if fault.after_seconds is not None:
                run.due = time.monotonic() + fault.after_seconds
            for index in range(STEPS):
                self._train(first, index)
            self._strike_late()
        except RanksLost:
            self._restart_ranks()
            for index in range(STEPS):
                self._train(first, index)
        self._train_balanced(first, STEPS)
        steps = list(range(first, first + STEPS + 1))
        assert self._ask("release", steps, names=("controller",)) == [""]
        self._ask("check_empty", names=("controller",))
        self._check_left_over()
        return run

    # Training

    def _train(self, first: int, index: int) -> None:
        """One RL step, announced by a controller that may fail."""
        if index == 0:
            self._ask("reset")
        pause = 0.004 if self._run.fault.victim == "controller" else 0.0
        (trouble,) = self._ask("announce", first + index, index, pause, names=("controller",))
        self._run.troubles += [trouble] if trouble else []
        self._check(self._ask("train", first + index, index))
        if index > 0:
            self._ask("release", [first + index - 1], names=("controller",))

    def _train_balanced(self, first: int, index: int) -> None:
        """The step after the fault, which nothing may disturb."""
        self._ask("connected", names=(*RANKS, "controller"))
        (trouble,) = self._ask("announce", first + index, index, names=("controller",))
        assert not trouble, trouble
        self._ask("wait_planned", first + index, names=("controller",))
        self._ask("has_plans", first + index)
        before = self._run.degraded
        self._check(self._ask("train", first + index, index))
        assert self._run.degraded == before, "balance is not back"

    def _check(self, answers: list[tuple[float, list[str]]]) -> None:
        for name, (error, reasons) in zip(RANKS, answers, strict=True):
            assert error <= TOLERANCE, f"{name} is off by {error}"
            self._run.degraded += len(reasons)

    # Faults

    def _arm(self, fault: Fault) -> None:
        if fault.crash_at is None:
            return
        if fault.crash_at not in ON_START:
            self._ask("crash_at", str(fault.crash_at), names=(fault.victim,))
        elif fault.victim in DAEMONS:
            self._children[fault.victim].end()
            self._start_daemon(fault.victim, fault.crash_at)
        else:
            self._end_ranks()
            self._start_ranks(fault.victim, fault.crash_at)

    def _strike(self) -> None:
        self._run.due = None
        if self._run.fault.victim == CLOCK:
            jump(self._run.fault.jump_seconds)
            self._run.struck = True
            return
        child = self._children[self._run.fault.victim]
        if child.process.is_alive():
            os.kill(child.pid, self._run.fault.signal)

    def _strike_late(self) -> None:
        """The steps were over before the fault was due, or before anybody noticed it."""
        if self._run.fault is NOTHING or self._run.struck:
            return
        if self._run.due is not None:
            self._strike()
        if self._run.struck:
            return
        child = self._children[self._run.fault.victim]
        assert wait([child.process.sentinel], HANG_SECONDS), "it did not die"
        self._note_death(child)

    def _note_death(self, child: Child) -> None:
        """Start it again, or raise RanksLost."""
        code = child.end()
        fault = self._run.fault
        drains = fault.crash_at is None and fault.signal is SIGTERM
        assert child.name == fault.victim, f"{child.name} died\n{child.last_lines()}"
        assert not self._run.struck, f"it died twice\n{child.last_lines()}"
        assert code == (0 if drains else -SIGKILL), f"exit code {code}"
        self._run.struck = True
        if child.name in DAEMONS:
            self._start_daemon(child.name)
        elif child.name == "controller":
            self._start_controller()
        else:
            raise RanksLost

    def _restart_ranks(self) -> None:
        """The rank that lost the other one must see it by itself before the group starts again."""
        (left,) = [name for name in RANKS if name != self._run.fault.victim]
        child = self._children[left]
        if left in self._waiting_for:
            seen = wait([child.connection, child.process.sentinel], HANG_SECONDS)
            assert seen, f"{left} hangs\n{child.last_lines()}"
        self._end_ranks()
        if (self._caches / FILLER).exists():
            fill(self._caches)  # also what the ranks have just given back
        self._start_ranks()

    def _end_ranks(self) -> None:
        for name in RANKS:
            self._children[name].end()

    # Processes

    def _start(self, name: str, *arguments: Any, crash_at: CrashPoint | None = None) -> None:
        function: Callable[..., None] = rank_main if name in RANKS else controller_main
        if name in DAEMONS:
            function = daemon_main
        log = self._folder / f"{name}.log"
        self._children[name] = Child(
            name, function, *arguments, log=log, seen=self.seen, crash_at=str(crash_at or "")
        )

    def _start_daemon(self, name: str, crash_at: CrashPoint | None = None) -> None:
        here = f"127.0.0.1:{self._port}"
        config = RuntimeConfig(
            self._socket(name),
            max_steps=8,
            drain_seconds=1.0,
            also_listen=here if name == "leader" else None,
            join=here if name == "follower" else None,
        )
        self._start(name, config, crash_at=crash_at)

    def _start_controller(self) -> None:
        self._start("controller", self._case, self._socket("follower"))
        connection = self._children["controller"].connection
        assert connection.poll(HANG_SECONDS), "the controller does not start"
        assert connection.recv() == "ready"

    def _start_ranks(self, victim: str = "", crash_at: CrashPoint | None = None) -> None:
        """Returns when they have attached, or raises RanksLost."""
        self._starts += 1
        rendezvous = self._folder / f"rendezvous-{self._starts}"
        for rank, name in enumerate(RANKS):
            arguments = (rank, self._case, self._socket(DAEMONS[rank]), self._caches, rendezvous)
            self._start(name, *arguments, crash_at=crash_at if name == victim else None)
        assert self._answers(RANKS, None) == ["ready", "ready"]

    def _socket(self, daemon: str) -> str:
        return str(self._folder / daemon / "s")

    def _ask(self, *message: Any, names: tuple[str, ...] = RANKS) -> list[Any]:
        """Have each of ``names`` do it; their answers. Strikes, restarts, raises RanksLost."""
        for name in names:
            self._children[name].send(message)
        return self._answers(names, message)

    def _answers(self, names: tuple[str, ...], message: Any) -> list[Any]:
        answers: dict[str, Any] = {}
        deadline = time.monotonic() + HANG_SECONDS
        self._waiting_for = set(names)
        while self._waiting_for:
            due = self._run.due
            until = deadline if due is None else min(due, deadline)
            connections = [self._children[name].connection for name in self._waiting_for]
            sentinels = [child.process.sentinel for child in self._children.values()]
            ready = wait([*connections, *sentinels], max(0.0, until - time.monotonic()))
            assert time.monotonic() < deadline, f"{sorted(self._waiting_for)} hang in {message}"
            if due is not None and time.monotonic() >= due:
                self._strike()
            for child in list(self._children.values()):
                if child.connection in ready and child.name in self._waiting_for:
                    try:
                        answers[child.name] = child.connection.recv()
                        self._waiting_for.discard(child.name)
                    except (EOFError, ConnectionResetError):
                        child.process.join(HANG_SECONDS)
                if child.process.exitcode is not None:
                    self._note_death(child)
                    if child.name in DAEMONS:  # it was armed, and has crashed at once
                        answers[child.name] = None
                        self._waiting_for.discard(child.name)
                    elif child.name in self._waiting_for:
                        self._children[child.name].send(message)
        return [answers[name] for name in names]

    # What is left

    def _check_left_over(self) -> None:
        """In shared memory, of sockets, of processes, and of open files in each."""
        assert {path.name for path in self._caches.iterdir()} <= {FILLER}
        for name in DAEMONS:
            assert {path.name for path in (self._folder / name).iterdir()} == {"s", "s.lock"}
        assert children() == {child.pid for child in self._children.values()}
        for child in self._children.values():
            found = child.descriptors()
            least = self._descriptors.get(child.pid, found)
            assert found <= least + DESCRIPTORS, f"{child.name} has {found} descriptors open"
            self._descriptors[child.pid] = min(found, least)
