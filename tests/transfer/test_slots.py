import threading
import time
from collections.abc import Callable

import pytest
import torch

from foremoe.errors import StaleGenerationError, TransferError
from foremoe.transfer.content import Content, write_stamp
from foremoe.transfer.slots import EDGES, SlotPool, SlotState, slot_bytes
from tests.transfer.toy_group import layout

SLOT, OTHER = 0, 1
CONTENT = Content(layer=3, expert=5, generation=1)

ACTIONS: dict[str, Callable[[SlotPool], object]] = {
    "begin_fill": lambda pool: pool.begin_fill(SLOT, CONTENT, 0.0),
    "end_fill": lambda pool: pool.end_fill(SLOT, CONTENT),
    "fail_all": lambda pool: pool.fail_all(TransferError("died")),
    "fail": lambda pool: pool.fail(SLOT, TransferError("lost")),
    "undo_fill": lambda pool: pool.undo_fill(SLOT),
    "keep and use": lambda pool: pool.use([SLOT], {SLOT: CONTENT}),
    "use": lambda pool: pool.use([], {SLOT: CONTENT}),
    "release": lambda pool: pool.release(SLOT, owing=False),
    "release owing": lambda pool: pool.release(SLOT, owing=True),
    "hold_gradients": lambda pool: pool.hold_gradients(SLOT),
    "end_gradients": lambda pool: pool.end_gradients(SLOT),
    "abandon": lambda pool: pool.abandon(SLOT),
    "forget_all": lambda pool: pool.forget_all(),
}


def _pool(training: bool = True, checksums: bool = False) -> SlotPool:
    return SlotPool(4, layout(), training, checksums)


def _fill(pool: SlotPool, content: Content = CONTENT) -> None:
    write_stamp(pool.begin_fill(SLOT, content, 0.0), content)
    pool.end_fill(SLOT, content)


def _pool_in(state: SlotState) -> SlotPool:
    pool = _pool()
    if state is SlotState.FILLING:
        pool.begin_fill(SLOT, CONTENT, 0.0)
        return pool
    _fill(pool)
    if state is SlotState.READY:
        return pool
    if state is SlotState.FREE:
        pool.abandon(SLOT)
        return pool
    pool.use([], {SLOT: CONTENT})
    if state is not SlotState.IN_USE:
        pool.release(SLOT, owing=True)
    if state is SlotState.GRADS:
        pool.hold_gradients(SLOT)
    return pool


ALWAYS = {"fail", "fail_all", "undo_fill"}
LEGAL = {
    SlotState.FREE: ALWAYS | {"begin_fill", "keep and use", "abandon", "forget_all"},
    SlotState.FILLING: ALWAYS | {"end_fill", "abandon"},
    SlotState.READY: ALWAYS | {"use", "abandon"},
    SlotState.IN_USE: ALWAYS | {"release", "release owing", "abandon"},
    SlotState.OWING: ALWAYS | {"keep and use", "hold_gradients", "abandon"},
    SlotState.GRADS: ALWAYS | {"end_gradients", "abandon"},
}


@pytest.mark.parametrize("state", SlotState)
@pytest.mark.parametrize("action", ACTIONS)
def test_only_the_named_edges_exist(state: SlotState, action: str) -> None:
    pool = _pool_in(state)
    assert pool.state(SLOT) is state
    if action in LEGAL[state]:
        ACTIONS[action](pool)
        after = pool.state(SLOT)
        used = action == "keep and use"
        assert after is state or (state, after) in EDGES or (used and after is SlotState.IN_USE)
    else:
        with pytest.raises((AssertionError, TransferError, StaleGenerationError)):
            ACTIONS[action](pool)
        assert pool.state(SLOT) is state


def test_a_slot_holds_what_was_promised_or_is_not_used() -> None:
    pool = _pool_in(SlotState.READY)
    for wrong in (Content(5, 5, 1), Content(3, 6, 1), Content(3, 5, 2)):
        with pytest.raises(StaleGenerationError, match=r"slot 0: layer . expert . generation"):
            pool.use([], {SLOT: wrong})
    pool.use([], {SLOT: CONTENT})


def test_bytes_of_another_expert_are_noticed_by_their_stamp() -> None:
    pool = _pool()
    write_stamp(pool.begin_fill(SLOT, CONTENT, 0.0), Content(3, 6, 1))
    pool.end_fill(SLOT, CONTENT)
    with pytest.raises(StaleGenerationError, match="stamped layer 3 expert 6 generation 1"):
        pool.use([], {SLOT: CONTENT})


def test_a_fill_that_wrote_nothing_is_noticed() -> None:
    pool = _pool_in(SlotState.FREE)
    pool.begin_fill(SLOT, CONTENT, 0.0)
    pool.end_fill(SLOT, CONTENT)
    with pytest.raises(StaleGenerationError, match="stamped None"):
        pool.use([], {SLOT: CONTENT})


def test_a_changed_bit_is_noticed_in_checksum_mode() -> None:
    pool = _pool(checksums=True)
    slab = pool.begin_fill(SLOT, CONTENT, 0.0)
    slab[: layout().payload_bytes] = 3
    write_stamp(slab, CONTENT, layout().checksum(pool.weight_views(SLOT)))
    pool.end_fill(SLOT, CONTENT)
    pool.check(SLOT, CONTENT)
    slab[17] ^= 4
    with pytest.raises(TransferError, match="are not those its home published"):
        pool.use([], {SLOT: CONTENT})


def test_nothing_is_taken_into_use_when_one_slot_failed() -> None:
    pool = _pool_in(SlotState.READY)
    pool.fail(OTHER, TransferError("the link broke"))
    pool.wait_settled([SLOT, OTHER], 0.0)
    with pytest.raises(TransferError, match="the link broke"):
        pool.use([], {SLOT: CONTENT, OTHER: CONTENT})
    assert pool.state(SLOT) is SlotState.READY
    pool.expect(OTHER)
    with pytest.raises(TransferError, match="slot 1: did not fill within"):
        pool.wait_settled([OTHER], 0.0)


def test_a_waiter_wakes_when_the_slot_is_ready() -> None:
    pool = _pool()
    pool.begin_fill(SLOT, CONTENT, 0.0)
    filler = threading.Thread(target=pool.end_fill, args=(SLOT, CONTENT))
    waiter = threading.Thread(target=pool.wait_settled, args=([SLOT], 60.0))
    waiter.start()
    filler.start()
    waiter.join(30)
    assert not waiter.is_alive()
    filler.join()


def test_waits_end_at_their_deadline() -> None:
    pool = _pool_in(SlotState.IN_USE)
    started = time.monotonic()
    with pytest.raises(TransferError, match=r"become free within 0.1 s \(it is in use\)"):
        pool.begin_fill(SLOT, CONTENT, 0.1)
    with pytest.raises(TransferError, match="become free"):
        pool.wait_all_free(0.1)
    assert time.monotonic() - started < 5


def test_what_is_lent_stays_until_it_was_sent_on() -> None:
    pool = _pool_in(SlotState.FREE)
    other = Content(layer=3, expert=6, generation=1)
    pool.lend(SLOT, CONTENT)
    assert pool.may_fill(SLOT, CONTENT)
    assert not pool.may_fill(SLOT, other)
    with pytest.raises(TransferError, match="become free"):
        pool.begin_fill(SLOT, other, 0.0)
    with pytest.raises(TransferError, match="become free"):
        pool.wait_all_free(0.0)
    assert pool.lent(SLOT, CONTENT).keys() == pool.weight_views(SLOT).keys()
    pool.end_loan(SLOT, CONTENT)
    _fill(pool, other)
    assert not pool.holds(SLOT, CONTENT)
    with pytest.raises(TransferError, match="did not come, and cannot be sent on"):
        pool.lent(SLOT, CONTENT)


def test_a_dead_worker_ends_every_wait() -> None:
    pool = _pool()
    dead = threading.Thread(target=pool.fail_all, args=(TransferError("it died"),))
    dead.start()
    with pytest.raises(TransferError, match="it died"):
        pool.wait_settled([SLOT], 60.0)
    dead.join()
    pool.expect(SLOT)
    with pytest.raises(TransferError, match="it died"):
        pool.wait_settled([SLOT], 60.0)


def test_gradients_start_at_zero_unless_more_are_added() -> None:
    pool = _pool_in(SlotState.IN_USE)
    for _ in range(3):
        for gradient in pool.gradient_views(SLOT, keep=False).values():
            assert not gradient.any()
            gradient += 1.0
    pool.release(SLOT, owing=True)
    pool.use([SLOT], {SLOT: CONTENT})
    assert all((g == 1.0).all() for g in pool.gradient_views(SLOT, keep=True).values())
    pool.release(SLOT, owing=True)
    pool.hold_gradients(SLOT)
    pool.end_gradients(SLOT)
    assert not pool.gradients(SLOT).any()


def test_memory_is_allocated_once() -> None:
    slab = layout()
    each = slab.nbytes + slab.gradient_layout().nbytes
    assert _pool().nbytes == 4 * each == 4 * slot_bytes(slab, training=True)
    assert _pool(training=False).nbytes == 4 * slab.nbytes
    pool = _pool()
    slabs = [pool.weights(slot) for slot in range(4)]
    for index, one in enumerate(slabs):
        one.fill_(index)
    assert [int(one.float().mean()) for one in slabs] == [0, 1, 2, 3]
    assert all(one.data_ptr() % 4096 == 0 for one in slabs)
    assert isinstance(pool.weight_views(SLOT)["down"], torch.Tensor)
