"""Fairness on the event loop: what all ranks ask for at once is done a few at a time."""

import asyncio
from collections import deque

TURNS_A_ROUND = 2


class Turns:
    """Lets two coroutines go on in each round of the loop; whoever else calls waits no longer.

    The ranks of a group follow their plans and report together. Each of them alone takes well below
    a millisecond, all 64 in one round of the loop would keep another client's ping waiting.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when it is this coroutine's turn."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin_round)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin_round(self) -> None:
        given = 0
        while self._waiting and given < TURNS_A_ROUND:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller has gone
                turn.set_result(None)
                given += 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._begin_round)
