"""What a byte limit is spent on: the choice between slots of their own and shared ones."""

import pytest

from foremoe.errors import ExhaustedError
from foremoe.transfer.budget import SlotBudget, spend
from foremoe.transfer.slots import slot_bytes
from tests.transfer.toy_group import layout

SLAB = layout()
GRADIENT = SLAB.gradient_layout().nbytes
FRAME = 3 * slot_bytes(SLAB, training=True)
ASIDE = 3 * GRADIENT


def budget(limit_bytes: int | None, layers: int = 5) -> SlotBudget:
    return spend(limit_bytes, layers, 3, SLAB, training=True)


def test_every_layer_has_slots_where_they_fit() -> None:
    assert (budget(None).frames, budget(None).gradient_buffers) == (5, None)
    exact = budget(5 * FRAME + ASIDE)
    assert (exact.frames, exact.gradient_buffers) == (5, 3)
    assert exact.reason.startswith("resident: 5 layers' slots take")


def test_layers_share_as_many_slots_as_fit() -> None:
    for limit, frames in [(5 * FRAME + ASIDE - 1, 4), (2 * FRAME + ASIDE, 2)]:
        found = budget(limit)
        assert found.frames == frames
        assert found.gradient_buffers is not None
        assert frames * FRAME + found.gradient_buffers * GRADIENT <= limit
        assert found.gradient_buffers >= 3, "a layer's gradients"
        assert found.reason.startswith(f"streaming: 5 layers share the slots of {frames}")


def test_less_than_two_layers_slots_are_refused() -> None:
    with pytest.raises(ExhaustedError, match=f"the limit is {2 * FRAME + ASIDE - 1}; raise it"):
        budget(2 * FRAME + ASIDE - 1)
    assert budget(FRAME + ASIDE, layers=1).frames == 1


def test_without_training_there_are_no_gradients() -> None:
    found = spend(4 * 3 * SLAB.nbytes, 5, 3, SLAB, training=False)
    assert (found.frames, found.gradient_buffers) == (4, None)
    assert spend(10, 5, 0, SLAB, training=True).frames == 5, "no slots need no memory"
