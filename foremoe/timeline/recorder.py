"""Records the spans of a process: the newest ones, or none at all.

The compute stream does one thing at a time, so its spans follow one another without gaps and make
up the micro-step: ``during`` a block it does what the block is for, ``waited`` says it has done
nothing until now, and the rest is ``other`` work. Worker threads ``add`` what their streams did.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from foremoe.errors import InvalidInputError
from foremoe.timeline.chrome_trace import Clock, Trace, write_trace
from foremoe.timeline.span import NO_LAYER, Span, StageOfRun

CAPACITY = 1 << 16  # spans; about 20 MB
LEAST_WAIT_SECONDS = 20e-6  # less is the call itself
_OFF: AbstractContextManager[None] = nullcontext()

log = logging.getLogger(__name__)


class Activity(NamedTuple):
    """What the compute stream does."""

    track: str
    name: str
    layer: int = NO_LAYER


OTHER = Activity("other", "work")
AGREEMENT = Activity("agreement", "agreement")


class SpanRecorder:
    """``capacity`` 0 records nothing and costs next to nothing; else the newest spans are kept.

    path: where ``save`` writes them, for a process with this name of the EP group. sampled: how
    many of the first spans of every balanced stage are kept for ``take_sample``. One thread at a
    time drives the compute stream; ``add`` may be called by any.
    """

    def __init__(
        self,
        capacity: int = 0,
        path: Path | None = None,
        ep_group: str = "",
        process: str = "",
        sampled: int = 0,
    ) -> None:
        self.spans: deque[Span] = deque(maxlen=capacity)
        self.on = capacity > 0
        self._sampled = sampled
        self._sample: list[Span] = []
        self._sampling = False
        self._path = path
        self._ep_group = ep_group
        self._process = process
        self._micro_step = -1
        self._of: StageOfRun | None = None
        self._activity: Activity | None = None
        self._since_ns = 0

    def micro_step(
        self, step: int, stage: str, balanced: bool, index: int
    ) -> AbstractContextManager[None]:
        """Inside, the compute stream is recorded; outside of it nothing is."""
        self._sampling = balanced and len(self._sample) < self._sampled
        self.on = self.spans.maxlen != 0 or self._sampling
        if not self.on:
            return _OFF
        return self._within(StageOfRun(self._ep_group, step, str(stage), balanced), index)

    def during(
        self, activity: Activity, then: Activity | None = None
    ) -> AbstractContextManager[None]:
        """The compute stream does ``activity``, and afterwards ``then`` or what it did before."""
        before = self._activity
        return _OFF if before is None else _During(self._turn, activity, then or before)

    def waited(self, name: str, seconds: float, layer: int = NO_LAYER) -> None:
        """The compute stream has been waiting for ``name`` for so long, until now: exposed time."""
        before = self._activity
        if before is None or seconds < LEAST_WAIT_SECONDS:
            return
        now = time.monotonic_ns()
        began = max(self._since_ns, now - round(1e9 * seconds))
        self._turn(Activity("exposed", name, layer), began)
        self._turn(before, now)

    def add(
        self, track: str, name: str, start_ns: int, layer: int = NO_LAYER, nbytes: int = 0
    ) -> None:
        """Another stream has done something since ``start_ns`` (``time.monotonic_ns``)."""
        if self.on:
            self._append(Activity(track, name, layer), start_ns, time.monotonic_ns(), nbytes)

    def add_plan(self, of: StageOfRun, micro_step: int, start_ns: int) -> None:
        """The plan of a micro-step has been made since ``start_ns``."""
        if self.on:
            name, now = f"plan of micro-step {micro_step}", time.monotonic_ns()
            self.spans.append(Span("planning", name, start_ns, now, micro_step, NO_LAYER, of=of))

    def take_sample(self, step: int, stage: str) -> list[Span]:
        """The stage's first spans, and another stage begins; what did not go in whole is left out.

        A micro-step of which spans are missing is, unless it is the only one.
        """
        sample, self._sample = self._sample, []
        if len(sample) >= self._sampled:
            last = max((span.micro_step for span in sample), default=0)
            sample = [span for span in sample if span.micro_step < last] or sample
        of = (step, str(stage))
        return [span for span in sample if span.of is not None and span.of[1:3] == of]

    def save(self) -> None:
        """Write what is recorded as a Chrome trace; a folder that is not there costs a warning."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_trace(self._path, Trace({self._process: list(self.spans)}, Clock.here()))
        except (InvalidInputError, OSError) as error:
            log.warning("no timeline of %s: %s", self._process, error)

    @contextmanager
    def _within(self, of: StageOfRun, index: int) -> Iterator[None]:
        self._of, self._micro_step = of, index
        self._activity, self._since_ns = OTHER, time.monotonic_ns()
        try:
            yield
        finally:
            self._turn(OTHER, time.monotonic_ns())
            self._activity = None

    def _turn(self, to: Activity, now_ns: int) -> None:
        """The compute stream does something else from now on."""
        if self._activity is not None and now_ns > self._since_ns:
            self._append(self._activity, self._since_ns, now_ns, 0)
        self._activity, self._since_ns = to if self.on else None, now_ns

    def _append(self, what: Activity, start_ns: int, end_ns: int, nbytes: int) -> None:
        where = (self._micro_step, what.layer, nbytes, self._of)
        span = Span(what.track, what.name, start_ns, end_ns, *where)
        self.spans.append(span)
        if self._sampling:
            self._sample.append(span)
            self._sampling = len(self._sample) < self._sampled
            self.on = self._sampling or self.spans.maxlen != 0


class _During:
    """A part of the compute stream's time; as a generator it would take longer."""

    __slots__ = ("_activity", "_then", "_turn")

    def __init__(
        self, turn: Callable[[Activity, int], None], activity: Activity, then: Activity
    ) -> None:
        self._turn, self._activity, self._then = turn, activity, then

    def __enter__(self) -> None:
        self._turn(self._activity, time.monotonic_ns())

    def __exit__(self, *_: object) -> None:
        self._turn(self._then, time.monotonic_ns())
