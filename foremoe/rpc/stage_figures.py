"""What a report draws of one stage, beside its status."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.timeline import Timeline, decode_timeline, encode_timeline
from foremoe.rpc.v1 import status_pb2

BAND = (10, 90)  # percentiles over layers
COLUMNS = 10  # of ``StageFigures.imbalance``


@dataclass(frozen=True, slots=True, eq=False)
class LoadSample:
    """Some layers of the first micro-steps of a stage, to be planned again for other targets.

    load: uint32 ``[M, L, P, E]``, (token, expert) pairs. home: int32 ``[L, E]``.
    layers: global ids. imbalance_after, copies: what the stage's plans reach in these layers and
    micro-steps, means; copies are new replicas.
    ranks_per_node: consecutive ranks that share a node.
    """

    load: NDArray[np.uint32]
    home: NDArray[np.int32]
    layers: tuple[int, ...]
    imbalance_after: float
    copies: float
    ranks_per_node: int


@dataclass(frozen=True, slots=True, eq=False)
class StageFigures:
    """The first M micro-steps of a stage; all that is kept of them is here, in little room.

    imbalance: float64 ``[M, COLUMNS]``: 10th percentile, median, 90th percentile, maximum and mean
    over the layers with experts at home, and the same under the plan.
    traffic: int64 ``[2, P, P]``, pairs of all layers and micro-steps from the rank whose tokens
    they are to the one that computes them, with experts at home and under the plans; None in groups
    of many ranks.
    seconds: float64 ``[M, 3]``, since the schedule arrived (``submitted_unix_ns``): when planning
    of a micro-step began, when its plan was made, when the first rank began it, NaN where none has
    said.
    timelines: by rank, of the lowest ranks that recorded.
    """

    imbalance: NDArray[np.float64]
    traffic: NDArray[np.int64] | None
    submitted_unix_ns: int
    seconds: NDArray[np.float64]
    sample: LoadSample | None
    timelines: dict[int, Timeline] = field(default_factory=dict)

    @property
    def before(self) -> NDArray[np.float64]:
        """``imbalance`` with experts at home: ``[M, 5]``."""
        return self.imbalance[:, : COLUMNS // 2]

    @property
    def after(self) -> NDArray[np.float64]:
        """``imbalance`` under the plans: ``[M, 5]``."""
        return self.imbalance[:, COLUMNS // 2 :]

    @property
    def nbytes(self) -> int:
        """What the arrays take."""
        total = self.imbalance.nbytes + self.seconds.nbytes
        total += sum(timeline.rows.nbytes for timeline in self.timelines.values())
        total += 0 if self.traffic is None else self.traffic.nbytes
        return total + (0 if self.sample is None else self.sample.load.nbytes)


def band_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Imbalances ``[M, L]`` -> 10th percentile, median, 90th, maximum and mean: ``[M, 5]``."""
    low, middle, high = np.percentile(values, (BAND[0], 50, BAND[1]), axis=1)
    return np.stack([low, middle, high, values.max(axis=1), values.mean(axis=1)], axis=1)


def encode_figures(figures: StageFigures) -> status_pb2.StageFigures:
    message = status_pb2.StageFigures(
        imbalance=encode_array(figures.imbalance),
        submitted_unix_ns=figures.submitted_unix_ns,
        seconds=encode_array(figures.seconds),
        timelines=[
            status_pb2.RankTimeline(rank=rank, timeline=encode_timeline(timeline))
            for rank, timeline in sorted(figures.timelines.items())
        ],
    )
    if figures.traffic is not None:
        message.traffic.CopyFrom(encode_array(figures.traffic))
    if figures.sample is not None:
        message.sample.CopyFrom(_encode_sample(figures.sample))
    return message


def _encode_sample(sample: LoadSample) -> status_pb2.LoadSample:
    return status_pb2.LoadSample(
        load=encode_array(sample.load),
        home=encode_array(sample.home),
        layers=sample.layers,
        imbalance_after=sample.imbalance_after,
        copies=sample.copies,
        ranks_per_node=sample.ranks_per_node,
    )


def decode_figures(message: status_pb2.StageFigures) -> StageFigures:
    """Raises InvalidInputError when an array is not of the type or shape that it should have."""
    imbalance = decode_array(message.imbalance, "imbalance", [np.float64], (None, COLUMNS))
    traffic = None
    if message.HasField("traffic"):
        traffic = decode_array(message.traffic, "traffic", [np.int64], (2, None, None))
    return StageFigures(
        imbalance,
        traffic,
        message.submitted_unix_ns,
        decode_array(message.seconds, "seconds", [np.float64], (len(imbalance), 3)),
        _decode_sample(message.sample) if message.HasField("sample") else None,
        {one.rank: decode_timeline(one.timeline, "timelines") for one in message.timelines},
    )


def _decode_sample(message: status_pb2.LoadSample) -> LoadSample:
    load = decode_array(message.load, "load", [np.uint32], (None, len(message.layers), None, None))
    shape = (len(message.layers), load.shape[3])
    return LoadSample(
        load,
        decode_array(message.home, "home", [np.int32], shape),
        tuple(message.layers),
        message.imbalance_after,
        message.copies,
        message.ranks_per_node,
    )
