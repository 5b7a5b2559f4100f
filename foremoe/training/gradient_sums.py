"""Takes what replicas elsewhere computed and adds it to the experts' own gradients."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from torch import Tensor

from foremoe.training.home_experts import HomeExperts
from foremoe.transfer.gradients import ReturnedGradient


class GradientSums:
    """A transfer engine's gradient sink, for one session.

    Whether replicas' gradients come at once or in pieces, for want of memory, they are summed in
    the order of their ranks, and that sum is added once. A piece is kept apart from the own
    gradient, which others may write meanwhile.
    """

    def __init__(self, homes: Mapping[int, HomeExperts]) -> None:
        """homes: by layer."""
        self._homes = homes
        self._pieces: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __call__(self, returned: Sequence[ReturnedGradient]) -> None:
        for place, group in groupby(returned, lambda one: (one.layer, one.expert)):
            replicas = list(group)
            gradients = [replica.gradients for replica in replicas]
            if place in self._pieces:
                gradients.insert(0, self._pieces.pop(place))
            if replicas[-1].more:
                self._pieces[place] = _summed(gradients)
            else:
                layer, expert = place
                self._homes[layer].add_gradients(expert, gradients)


def _summed(gradients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """In the order given, in memory of its own."""
    total = {name: tensor.clone() for name, tensor in gradients[0].items()}
    for one in gradients[1:]:
        for name, tensor in total.items():
            tensor.add_(one[name])
    return total
