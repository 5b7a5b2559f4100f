import pytest

from foremoe.errors import TransferError
from foremoe.transfer.gradients import GradientCopy, GradientInbox, ReturnedGradient
from tests.transfer.toy_group import layout


def test_what_is_late_is_given_up_and_never_mistaken_for_another() -> None:
    inbox = GradientInbox(layout().gradient_layout())
    taken: list[ReturnedGradient] = []
    late = GradientCopy(layer=3, expert=1, rank=1, slot=0, home=0)
    into = inbox.expect([late])
    with pytest.raises(TransferError, match="1 replica gradients did not come home within"):
        inbox.collect(taken.extend, 0.0)
    inbox.collect(taken.extend, 0.0)
    again = inbox.expect([late])
    inbox.arrive(late, into[late])
    with pytest.raises(TransferError, match="1 replica gradients did not come home within"):
        inbox.collect(taken.extend, 0.0)
    again = inbox.expect([late])
    inbox.arrive(late, again[late])
    inbox.collect(taken.extend, 0.0)
    assert [(one.layer, one.expert, one.rank) for one in taken] == [(3, 1, 1)]
