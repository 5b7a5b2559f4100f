"""What the ranks agree that slots hold and owe, where it differs from what was promised."""

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.homes import contiguous_homes
from foremoe.transfer.copies import Fill
from foremoe.transfer.ledger import Ledger

HOME = contiguous_homes(1, 8, 2)
FIRST = np.array([[4, 5], [0, -1]], np.int32)
NEXT = np.array([[4, 6], [1, 0]], np.int32)


def used(ledger: Ledger, wanted: NDArray[np.int32]) -> None:
    promise, _ = ledger.open(3, HOME[0], wanted, None)
    promise.acquired = promise.with_gradients = True
    ledger.close(3)


def test_a_dropped_fill_leaves_the_slot_what_it_held() -> None:
    ledger = Ledger([3], HOME, 2, 2, 1)
    used(ledger, FIRST)
    promise, evicted = ledger.open(3, HOME[0], NEXT, None)
    assert promise.fills == [Fill(0, 1, 6), Fill(1, 1, 1)]
    assert [(copy.expert, copy.rank) for copy in evicted] == [(5, 0)]
    ledger.drop(3, Fill(0, 1, 6))
    assert promise.placement.tolist() == [[4, -1], [0, 1]]
    assert promise.serving.tolist() == [[True, False], [True, True]]
    promise.acquired = promise.with_gradients = True
    ledger.close(3)
    assert not ledger.owes(1, 0), "no replica, no gradients"
    promise, _ = ledger.open(3, HOME[0], FIRST, None)
    assert promise.fills == [], "expert 5 was there all the time"


def test_gradients_stay_where_they_are_added_to() -> None:
    ledger = Ledger([3], HOME, 2, 2, 1)
    used(ledger, FIRST)
    staying = np.array([[4, -1], [-1, -1]], np.int32)
    assert [(one.expert, one.rank) for one in ledger.settle(3, staying)] == [(5, 0), (0, 1)]
    assert ledger.owing == [3]
    assert [(one.expert, one.rank) for one in ledger.settle(3)] == [(4, 0)]
    assert ledger.owing == []


@pytest.mark.parametrize(
    ("wanted", "serving", "message"),
    [
        (FIRST.astype(np.int64) + 2**32, None, "int32"),
        (FIRST + 0.9, None, "int32"),
        (FIRST[:1], None, "int32"),
        (FIRST, np.ones((2, 1), np.bool_), "pairs must be"),
    ],
)
def test_a_refused_promise_changes_nothing(
    wanted: NDArray[np.int32], serving: NDArray[np.bool_] | None, message: str
) -> None:
    ledger = Ledger([3], HOME, 2, 2, 1)
    with pytest.raises(InvalidInputError, match=message):
        ledger.open(3, HOME[0], wanted, serving)
    assert ledger.can_open(3)
    promise, _ = ledger.open(3, HOME[0], np.asfortranarray(FIRST), None)
    assert promise.placement.tolist() == FIRST.tolist()
