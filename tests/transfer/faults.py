"""Faults put into a running engine, one rank at a time."""

import time
from typing import Any

from torch import Tensor

from foremoe.transfer.copies import Copy
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.host_cache import HostExpertCache


def slow_reads(cache: HostExpertCache, seconds: float) -> None:
    """The host link takes ``seconds`` longer for each copy."""
    read = cache.read

    def slowly(*part: Any) -> None:
        time.sleep(seconds)
        read(*part)

    cache.read = slowly  # type: ignore[method-assign]


def lose_copies(engine: TransferEngine, expert: int) -> None:
    """Copies of ``expert`` on the host path never happen."""
    assert engine._host is not None
    fill = engine._host.fill

    def mostly(copy: Copy, generation: int) -> None:
        if copy.expert != expert:
            fill(copy, generation)

    engine._host.fill = mostly  # type: ignore[method-assign]


def kill_worker_of(engine: TransferEngine, path: str) -> None:
    """The next job of the ``host`` or ``peer`` worker ends its thread by a bug."""

    def bug(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    if path == "host":
        assert engine._cache is not None
        engine._cache.read = bug  # type: ignore[method-assign]
    else:
        assert engine._peer is not None
        engine._peer._start = bug  # type: ignore[method-assign]


def flip_a_bit(slab: Tensor, byte: int = 11) -> None:
    """Memory or a link changes one bit of ``slab``."""
    slab[byte] ^= 16
