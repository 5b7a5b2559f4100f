"""One thing that ran from one moment to another."""

from typing import NamedTuple

SECOND = 1e9  # nanoseconds
COMPUTE = ("other", "agreement", "dispatch", "compute", "exposed")  # tracks of one stream
NO_LAYER = -1  # what is of no one layer


class StageOfRun(NamedTuple):
    """What a recorded span belongs to. balanced: whether plans were asked for."""

    ep_group: str
    step: int
    stage: str
    balanced: bool = True


class Span(NamedTuple):
    """track: the stream it ran on, such as ``compute`` or ``host rank 3``. Times in nanoseconds.

    micro_step: which was under way, or for a copy of a simulated run the one it is for.
    nbytes: weights or gradients that it moved. of: None in simulated runs.
    """

    track: str
    name: str
    start_ns: int
    end_ns: int
    micro_step: int
    layer: int
    nbytes: int = 0
    of: StageOfRun | None = None
