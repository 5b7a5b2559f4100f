"""Uploads foresight sequence by sequence from an asyncio program."""

import asyncio
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foremoe.client.foresight_stream import ForesightStream
from foremoe.foresight.routing import Routing


class AsyncForesightStream:
    """One upload: ``await add(...)`` each finished sequence; leaving the block commits.

    An exception inside the block or a cancelled task leaves the daemon as it was; a lost daemon is
    as for ``ForesightStream``. Not for use by several tasks at once; each may have its own.

    It is a ``ForesightStream`` in threads: ``grpc.aio`` forgets why the daemon has ended a call
    when a write is under way just then.
    """

    def __init__(self, stream: ForesightStream) -> None:
        self._stream = stream

    @property
    def sequences_added(self) -> int:
        return self._stream.sequences_added

    @property
    def sequences_known(self) -> int:
        return self._stream.sequences_known

    async def __aenter__(self) -> Self:
        self._stream.__enter__()  # waits for nothing
        return self

    async def add(
        self,
        sequence_id: str,
        *,
        histogram: NDArray[np.uint32] | None = None,
        expert_ids: NDArray[Any] | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Send one sequence, or more tokens of it, as ``ForesightStream.add`` does.

        Ids are counted in a thread, without the GIL; the event loop goes on meanwhile.
        """
        await asyncio.to_thread(
            self._stream.add,
            sequence_id,
            histogram=histogram,
            expert_ids=expert_ids,
            routing=routing,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stream.abort()
            return
        try:
            await asyncio.to_thread(self._stream.__exit__, None, None, None)
        except asyncio.CancelledError:
            self._stream.abort()
            raise
