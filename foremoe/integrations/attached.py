"""What attaching a model gives: the session, the routing replay, and the way back."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.optim import Optimizer

from foremoe.routing.replay import RoutingReplay
from foremoe.training.session import RankSession


class Attached:
    """A model on ForeMoE.

    session: stages and micro-steps of this rank. replay: sits behind the model's routers.
    """

    def __init__(
        self, session: RankSession, replay: RoutingReplay, undo: Sequence[Callable[[], None]]
    ) -> None:
        self.session = session
        self.replay = replay
        self._home = session.layout.home
        self._undo = list(undo)

    def follow(self, optimizer: Optimizer) -> None:
        """Void the replicas after each step of ``optimizer``, which all ranks take alike."""

        def stepped(*_: Any) -> None:
            self.session.weights_changed()

        self._undo.append(optimizer.register_step_post_hook(stepped).remove)

    def detach(self) -> None:
        """Give the model back as it was before, and end the session; again is harmless.

        On all ranks, between stages: experts that changed homes go back.
        """
        if not np.array_equal(self.session.layout.home, self._home):
            self.session.move_homes(self._home)
        while self._undo:
            self._undo.pop()()
        self.session.close()
