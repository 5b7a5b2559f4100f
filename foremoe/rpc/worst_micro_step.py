"""The most imbalanced micro-step of a stage: its load, and where the plan lies over it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foremoe.rpc.arrays import decode_array, encode_array
from foremoe.rpc.v1 import status_pb2


@dataclass(frozen=True, slots=True, eq=False)
class WorstMicroStep:
    """The one whose layers' mean imbalance is highest with experts at home.

    load: int64 ``[L, E]``, (token, expert) pairs of all ranks. home: int32 ``[L, E]``.
    replica_expert: int32 ``[L, P, R]``, -1 for an empty slot.
    imbalance_before, imbalance_after: float64 ``[L]``, with experts at home and under the plan.
    """

    micro_step: int
    load: NDArray[np.int64]
    home: NDArray[np.int32]
    replica_expert: NDArray[np.int32]
    imbalance_before: NDArray[np.float64]
    imbalance_after: NDArray[np.float64]


def encode_worst(worst: WorstMicroStep) -> status_pb2.WorstMicroStep:
    return status_pb2.WorstMicroStep(
        micro_step=worst.micro_step,
        load=encode_array(worst.load),
        home=encode_array(worst.home),
        replica_expert=encode_array(worst.replica_expert),
        imbalance_before=encode_array(worst.imbalance_before),
        imbalance_after=encode_array(worst.imbalance_after),
    )


def decode_worst(message: status_pb2.WorstMicroStep) -> WorstMicroStep:
    """Raises InvalidInputError when an array is not of the type or shape that it should have."""
    load = decode_array(message.load, "load", [np.int64], [None, None])
    layers, experts = load.shape
    return WorstMicroStep(
        message.micro_step,
        load,
        decode_array(message.home, "home", [np.int32], [layers, experts]),
        decode_array(message.replica_expert, "replica_expert", [np.int32], [layers, None, None]),
        decode_array(message.imbalance_before, "imbalance_before", [np.float64], [layers]),
        decode_array(message.imbalance_after, "imbalance_after", [np.float64], [layers]),
    )
