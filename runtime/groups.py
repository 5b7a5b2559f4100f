"""EP groups: defined by the first rank that registers, joined by the others."""

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import ConflictError, ExhaustedError, UnknownError
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.status import EpGroupStatus, StageDetail

MAX_GROUPS = 256


class EpGroup:
    """One EP group; ``description`` is its first rank's registration with rank 0.

    home: int32 ``[L, E]``, where its experts live: as a rank said last, or as planned since; None
    for contiguous homes.
    """

    def __init__(self, description: RankRegistration) -> None:
        self.description = description
        self.home: NDArray[np.int32] | None = None
        self.registered: set[int] = set()
        self.streaming = 0

    def status(self, latest: tuple[StageDetail, ...]) -> EpGroupStatus:
        return EpGroupStatus(
            ep_group=self.description.ep_group,
            ranks=self.description.ranks,
            registered=len(self.registered),
            streaming=self.streaming,
            spare_slots=self.description.spare_slots,
            latest=latest,
        )


class EpGroups:
    """All EP groups by name. They stay for the daemon's life: a restarted job finds its own."""

    def __init__(self) -> None:
        self._groups: dict[str, EpGroup] = {}

    def register(self, registration: RankRegistration) -> None:
        """Join, and define the group if it is new; the same registration again is fine.

        Raises ConflictError when the group is known with another description, ExhaustedError when
        there are MAX_GROUPS groups already.
        """
        description = replace(registration, rank=0, home=None)
        group = self._groups.get(registration.ep_group)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                raise ExhaustedError(
                    f"there are {MAX_GROUPS} EP groups already; restart the daemon to forget them"
                )
            group = self._groups[registration.ep_group] = EpGroup(description)
        else:
            _check_same(group.description, description)
        group.registered.add(registration.rank)
        if registration.home is not None:
            group.home = registration.home

    def get(self, ep_group: str) -> EpGroup:
        """Raises UnknownError for a group that no rank has registered."""
        group = self._groups.get(ep_group)
        if group is None:
            raise UnknownError(f"EP group {ep_group[:80]!r} is not known; register its ranks first")
        return group

    def member(self, ep_group: str, rank: int) -> EpGroup:
        """The group of a registered rank. Raises UnknownError for group or rank."""
        group = self.get(ep_group)
        if rank not in group.registered:
            raise UnknownError(
                f"rank {rank} of EP group {ep_group!r} has not registered; register it first"
            )
        return group

    def __contains__(self, ep_group: str) -> bool:
        return ep_group in self._groups

    def streaming(self) -> set[str]:
        """The groups with an open plan stream."""
        return {name for name, group in self._groups.items() if group.streaming}

    def status(self, latest: Mapping[str, tuple[StageDetail, ...]]) -> tuple[EpGroupStatus, ...]:
        """All groups; ``latest`` has the stages to tell of by group."""
        return tuple(group.status(latest.get(name, ())) for name, group in self._groups.items())


def _check_same(earlier: RankRegistration, given: RankRegistration) -> None:
    for field in (field for field in fields(RankRegistration) if field.compare):
        before, now = getattr(earlier, field.name), getattr(given, field.name)
        if before != now:
            raise ConflictError(
                f"{field.name}: EP group {earlier.ep_group!r} was defined with {str(before)[:80]}, "
                f"got {str(now)[:80]}; use another group name or restart the daemon"
            )
