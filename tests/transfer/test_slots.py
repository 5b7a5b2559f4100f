import threading
import time
from collections.abc import Callable

import pytest
import torch

from foremoe.errors import ExhaustedError, StaleGenerationError, TransferError
from foremoe.transfer.slots import EDGES, Content, SlotKey, SlotPool, SlotState
from tests.transfer.toy_group import layout

KEY, OTHER = SlotKey(3, 0), SlotKey(3, 1)
CONTENT = Content(expert=5, generation=1)

ACTIONS: dict[str, Callable[[SlotPool], object]] = {
    "begin_fill": lambda pool: pool.begin_fill(KEY, 0.0),
    "end_fill": lambda pool: pool.end_fill(KEY, CONTENT),
    "fail": lambda pool: pool.fail(KEY, TransferError("lost")),
    "undo_fill": lambda pool: pool.undo_fill(KEY),
    "keep and use": lambda pool: pool.use([KEY], {KEY: CONTENT}),
    "use": lambda pool: pool.use([], {KEY: CONTENT}),
    "release": lambda pool: pool.release(KEY),
    "hold_gradients": lambda pool: pool.hold_gradients(KEY),
    "end_gradients": lambda pool: pool.end_gradients(KEY),
    "abandon": lambda pool: pool.abandon(KEY),
    "forget_all": lambda pool: pool.forget_all(),
}


def _pool(training: bool = True, limit_bytes: int | None = None) -> SlotPool:
    return SlotPool([3, 5], 2, layout(), training, limit_bytes)


def _pool_in(state: SlotState) -> SlotPool:
    pool = _pool()
    pool.begin_fill(KEY, 0.0)
    if state is SlotState.FILLING:
        return pool
    pool.end_fill(KEY, CONTENT)
    if state is SlotState.READY:
        return pool
    if state is SlotState.FREE:
        pool.abandon(KEY)
        return pool
    pool.use([], {KEY: CONTENT})
    if state is SlotState.GRADS:
        pool.hold_gradients(KEY)
    return pool


LEGAL = {
    SlotState.FREE: {"begin_fill", "fail", "undo_fill", "keep and use", "abandon", "forget_all"},
    SlotState.FILLING: {"end_fill", "fail", "undo_fill", "abandon"},
    SlotState.READY: {"fail", "undo_fill", "use", "abandon"},
    SlotState.IN_USE: {"fail", "undo_fill", "release", "hold_gradients", "abandon"},
    SlotState.GRADS: {"fail", "undo_fill", "end_gradients", "abandon"},
}


@pytest.mark.parametrize("state", SlotState)
@pytest.mark.parametrize("action", ACTIONS)
def test_only_the_named_edges_exist(state: SlotState, action: str) -> None:
    pool = _pool_in(state)
    assert pool.state(KEY) is state
    if action in LEGAL[state]:
        ACTIONS[action](pool)
        after = pool.state(KEY)
        used = action == "keep and use"
        assert after is state or (state, after) in EDGES or (used and after is SlotState.IN_USE)
    else:
        with pytest.raises((AssertionError, TransferError, StaleGenerationError)):
            ACTIONS[action](pool)
        assert pool.state(KEY) is state


def test_a_slot_holds_what_was_promised_or_is_not_used() -> None:
    pool = _pool_in(SlotState.READY)
    for wrong in (Content(6, 1), Content(5, 2)):
        with pytest.raises(StaleGenerationError, match="layer 3 slot 0"):
            pool.use([], {KEY: wrong})
    pool.use([], {KEY: CONTENT})


def test_nothing_is_taken_into_use_when_one_slot_failed() -> None:
    pool = _pool_in(SlotState.READY)
    pool.fail(OTHER, TransferError("the link broke"))
    pool.wait_settled([KEY, OTHER], 0.0)
    with pytest.raises(TransferError, match="the link broke"):
        pool.use([], {KEY: CONTENT, OTHER: CONTENT})
    assert pool.state(KEY) is SlotState.READY
    pool.expect(OTHER)
    with pytest.raises(TransferError, match="layer 3 slot 1: did not fill within"):
        pool.wait_settled([OTHER], 0.0)


def test_a_waiter_wakes_when_the_slot_is_ready() -> None:
    pool = _pool()
    pool.begin_fill(KEY, 0.0)
    filler = threading.Thread(target=pool.end_fill, args=(KEY, CONTENT))
    waiter = threading.Thread(target=pool.wait_settled, args=([KEY], 60.0))
    waiter.start()
    filler.start()
    waiter.join(30)
    assert not waiter.is_alive()
    filler.join()


def test_waits_end_at_their_deadline() -> None:
    pool = _pool_in(SlotState.IN_USE)
    started = time.monotonic()
    with pytest.raises(TransferError, match=r"become free within 0.1 s \(it is in use\)"):
        pool.begin_fill(KEY, 0.1)
    with pytest.raises(TransferError, match="become free"):
        pool.wait_all_free(0.1)
    assert time.monotonic() - started < 5


def test_gradients_start_at_zero_each_time_and_are_zeroed_once() -> None:
    pool = _pool_in(SlotState.IN_USE)
    for _ in range(3):
        for gradient in pool.clean_gradients(KEY).values():
            assert not gradient.any()
            gradient += 1.0
    pool.hold_gradients(KEY)
    pool.end_gradients(KEY)
    assert not pool.gradients(KEY).any()


def test_memory_is_allocated_once_within_the_limit() -> None:
    slab = layout()
    each = slab.nbytes + slab.gradient_layout().nbytes
    assert _pool().nbytes == 4 * each
    assert _pool(training=False).nbytes == 4 * slab.nbytes
    _pool(limit_bytes=4 * each)
    with pytest.raises(ExhaustedError, match=f"need {4 * each} bytes but the limit is"):
        _pool(limit_bytes=4 * each - 1)
    pool = _pool()
    slabs = [pool.weights(SlotKey(layer, slot)) for layer in (3, 5) for slot in (0, 1)]
    for index, one in enumerate(slabs):
        one.fill_(index)
    assert [int(one.float().mean()) for one in slabs] == [0, 1, 2, 3]
    assert all(one.data_ptr() % 4096 == 0 for one in slabs)
    assert isinstance(pool.weight_views(KEY)["down"], torch.Tensor)
