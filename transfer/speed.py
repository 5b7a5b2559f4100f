"""Measured speeds of the paths, fed back into path choice on all ranks alike."""

from collections.abc import Sequence

from foremoe.transfer.paths import PathSpeed

NEW_SHARE = 0.3
LEAST_CHANGE = 0.1


def feed_back(current: PathSpeed, measured: Sequence[PathSpeed], first: bool) -> PathSpeed:
    """The speeds to choose paths by from now on; all ranks give the same arguments.

    measured: of every rank, 0 where a path carried nothing. Their mean moves the current figure by
    ``NEW_SHARE`` of the difference, or replaces it if it is the ``first`` that was measured.
    Differences below a tenth change nothing, so that choices do not flutter.
    """
    return PathSpeed(
        _smoothed(current.host, [speed.host for speed in measured], first),
        _smoothed(current.peer, [speed.peer for speed in measured], first),
    )


def _smoothed(current: float, measured: Sequence[float], first: bool) -> float:
    seen = [speed for speed in measured if speed > 0]
    if not seen or current <= 0:
        return current
    mean = sum(seen) / len(seen)
    if abs(mean - current) < LEAST_CHANGE * current:
        return current
    return float(round(mean if first else current + NEW_SHARE * (mean - current)))
