"""Turns on the event loop: spaced, in the order of asking, none lost to a caller that has gone."""

import asyncio
from itertools import pairwise

from foremoe.runtime.turns import ROUNDS_A_TURN, Turns

CALLERS = 5


async def watch_rounds(callers: int, gone: set[int]) -> list[tuple[int, int]]:
    """(round of the loop, caller) of every turn; callers in ``gone`` give up while they wait."""
    turns, given, rounds = Turns(), list[tuple[int, int]](), 0

    async def call(caller: int) -> None:
        await turns.take()
        given.append((rounds, caller))

    tasks = [asyncio.create_task(call(caller)) for caller in range(callers)]
    await asyncio.sleep(0)
    for caller in gone:
        tasks[caller].cancel()
    while not all(task.done() for task in tasks):
        rounds += 1
        assert rounds < 100 * callers, "somebody never gets a turn"
        await asyncio.sleep(0)
    return given


def test_one_turn_in_a_few_rounds_in_the_order_of_asking() -> None:
    given = asyncio.run(watch_rounds(CALLERS, gone=set()))
    rounds = [number for number, _ in given]
    assert [caller for _, caller in given] == list(range(CALLERS))
    gaps = {later - sooner for sooner, later in pairwise(rounds)}
    assert gaps == {ROUNDS_A_TURN}


def test_whoever_is_alone_waits_for_a_few_rounds() -> None:
    ((waited, _),) = asyncio.run(watch_rounds(1, gone=set()))
    assert waited <= ROUNDS_A_TURN + 1


def test_a_caller_that_has_gone_takes_no_turn() -> None:
    given = asyncio.run(watch_rounds(CALLERS, gone={0, 2, 3}))
    assert [caller for _, caller in given] == [1, 4]
    assert given[1][0] - given[0][0] == ROUNDS_A_TURN
