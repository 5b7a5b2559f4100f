"""What an expert computes, at home (under autograd) and as a replica (whose weights will go).

``GatedMlp`` is the usual one, written out by hand. ``Differentiated`` takes any function of rows
and weights; as a replica it runs the function again in backward.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from foremoe.training import gated_mlp
from foremoe.training.replica import Acquire, Function, differentiate_replica, run_replica

Weights = Mapping[str, Tensor]


class ExpertFunction(Protocol):
    """Rows ``[T, H]`` -> ``[T, H]``, by the weights of one expert."""

    def at_home(self, rows: Tensor, weights: Weights) -> Tensor: ...

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor: ...


class GatedMlp:
    """``down(silu(gate(x)) * up(x))``, see ``foremoe.training.gated_mlp``."""

    def at_home(self, rows: Tensor, weights: Weights) -> Tensor:
        return gated_mlp.forward(rows, weights)[0]

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
        return run_replica(rows, slot, acquire)


class Differentiated:
    """``function(weights, rows)``, differentiable in both."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def at_home(self, rows: Tensor, weights: Weights) -> Tensor:
        return self._function(weights, rows)

    def as_replica(self, rows: Tensor, slot: int, acquire: Acquire) -> Tensor:
        return differentiate_replica(self._function, slot, acquire, rows)
