"""Fairness on the event loop: what many ask for at once is done one at a time, with gaps."""

import asyncio
from collections import deque

ROUNDS_A_TURN = 4  # another client's call needs a few rounds; between two turns it gets them


class Turns:
    """Lets one coroutine go on in every fourth round of the loop; whoever else calls goes between.

    The ranks of a group follow their plans and report together, controllers upload together. One
    message alone takes well below a millisecond, all in one round of the loop would keep another
    client's ping waiting.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rounds = 0

    async def take(self) -> None:
        """Return when it is this coroutine's turn."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._rounds = 0
            loop.call_soon(self._begin_round)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin_round(self) -> None:
        self._rounds += 1
        if self._rounds % ROUNDS_A_TURN == 0:
            self._give()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._begin_round)

    def _give(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller has gone
                turn.set_result(None)
                return
