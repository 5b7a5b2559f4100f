"""Measured speeds of the links, fed back into path choice on all ranks alike."""

from collections.abc import Sequence

from foremoe.transfer.paths import PathSpeed

UNMEASURED = PathSpeed(0.0, 0.0, 0.0)
NEW_SHARE = 0.3
LEAST_CHANGE = 0.1
HOPE = 1.5


def feed_back(
    current: PathSpeed, measured: Sequence[PathSpeed], first: bool, dropped: bool = False
) -> PathSpeed:
    """The speeds to choose paths by from now on; all ranks give the same arguments.

    measured: of every rank, 0 where a link carried nothing. A layer waits for the slowest copy, so
    the slowest rank counts: its figure moves the current one by ``NEW_SHARE`` of the difference, or
    replaces it if it is the ``first`` that was measured. Differences below a tenth change nothing,
    so that choices do not flutter. dropped: whether replicas were dropped; a link that carried
    nothing is then taken for faster by ``HOPE``, until its copies are tried again.
    """
    return PathSpeed(
        _smoothed(current.host, [speed.host for speed in measured], first, dropped),
        _smoothed(current.peer, [speed.peer for speed in measured], first, dropped),
        _smoothed(current.network, [speed.network for speed in measured], first, dropped),
    )


def _smoothed(current: float, measured: Sequence[float], first: bool, dropped: bool) -> float:
    if current <= 0:
        return current
    seen = [speed for speed in measured if speed > 0]
    if not seen:
        return float(round(HOPE * current)) if dropped else current
    slowest = min(seen)
    if abs(slowest - current) < LEAST_CHANGE * current:
        return current
    return float(round(slowest if first else current + NEW_SHARE * (slowest - current)))
