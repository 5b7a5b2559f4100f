"""What options of several commands may be; a message names the flag that was typed."""

import argparse
import math

from foremoe.errors import InvalidInputError


def check_least(options: argparse.Namespace, **least: float) -> None:
    """Raise InvalidInputError for the first option, by name, that is below; None passes."""
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not lowest <= value < math.inf:
            raise InvalidInputError(
                f"--{name.replace('_', '-')}: must be at least {lowest}, got {value}"
            )


def check_spare_slots(spare_slots: int, experts: int) -> None:
    """Raise InvalidInputError for more slots than a layer has experts, or fewer than none."""
    if spare_slots < 0:
        raise InvalidInputError(f"--spare-slots: must be at least 0, got {spare_slots}")
    if spare_slots > experts:
        raise InvalidInputError(
            f"--spare-slots {spare_slots}: a layer has {experts} experts, more slots a rank are "
            "of no use"
        )
