"""Uploads foresight sequence by sequence, while the rollout goes on."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from foremoe.client.outbox import Outbox
from foremoe.client.retry import Attempts
from foremoe.client.upload_messages import UploadMessages
from foremoe.errors import ForemoeError, UnavailableError
from foremoe.foresight.routing import Routing
from foremoe.rpc.address import Address
from foremoe.rpc.channel import close_channel
from foremoe.rpc.codes import local_error
from foremoe.rpc.foresight import UploadHeader
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub

REPEATABLE_BYTES = 512 << 20


class ForesightStream:
    """One upload: ``add`` each finished sequence; leaving the ``with`` block commits.

    The daemon keeps all of it or nothing: an exception inside the block leaves it as it was. When
    the daemon is lost meanwhile, the upload is sent again as a whole, from its first sequence, to
    the daemon that answers next; what that one has already counts as known, so the effect is that
    of one upload. All the time it gets no further may add up to ``retry_seconds``; then, or when it
    has sent more than the 512 MiB that are kept here for that, UnavailableError is raised, and its
    caller has to send it again. Not for use by several threads at once.
    """

    def __init__(
        self,
        shared_channel: Callable[[], grpc.Channel],
        new_channel: Callable[[], grpc.Channel],
        address: Address,
        header: UploadHeader,
        timeout_seconds: float,
        retry_seconds: float,
        send_ids: bool,
    ) -> None:
        self.sequences_added = 0
        self.sequences_known = 0
        self._shared_channel = shared_channel
        self._new_channel = new_channel
        self._own_channel: grpc.Channel | None = None
        self._address = address
        self._upload = UploadMessages(header, send_ids)
        self._timeout_seconds = timeout_seconds
        self._outbox = Outbox(REPEATABLE_BYTES if retry_seconds > 0 else 0)
        self._changed = self._outbox.changed
        self._call: Any = None
        self._aborted = False
        self._attempts = Attempts(timeout_seconds, retry_seconds)

    def __enter__(self) -> Self:
        self._begin_call()
        self._outbox.put(self._upload.header())
        return self

    def add(
        self,
        sequence_id: str,
        *,
        histogram: NDArray[np.uint32] | None = None,
        expert_ids: NDArray[Any] | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Send one sequence, or more tokens of it: exactly one of the three.

        histogram: uint32 ``[L, E]``, (token, expert) pairs, the same sum in every layer.
        expert_ids: uint8, uint16 or int32 ``[tokens, L, top_k]``.
        routing: as a decoder of ``foremoe.foresight`` gives it; the header's layers of the rows
            that count are sent.

        Raises InvalidInputError when it does not fit the header, or one of the header's layers was
        not captured; the stream can go on without it. Raises what the daemon answered when it has
        refused the upload.
        """
        for message in self._upload.chunks(sequence_id, histogram, expert_ids, routing):
            self._wait(lambda: self._outbox.has_room)
            self._outbox.put(message)

    def abort(self) -> None:
        """End the call, from any thread: the daemon keeps nothing of it."""
        with self._changed:
            self._aborted = True
            self._call.cancel()
            self._end()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abort()
            return
        self._wait(lambda: self._outbox.has_room)
        self._outbox.put(self._upload.commit(), last=True)
        self._wait(lambda: False)  # but until it is answered: a call that is done may have failed
        response = self._call.result()
        self.sequences_added = response.sequences_added
        self.sequences_known = response.sequences_known
        self._end()

    def _begin_call(self) -> None:
        stub = ForesightServiceStub(self._own_channel or self._shared_channel())
        self._call = stub.UploadForesight.future(self._outbox.messages())
        self._call.add_done_callback(self._wake)

    def _end(self) -> None:
        self._outbox.close()
        self._close_own_channel()

    def _close_own_channel(self) -> None:
        if self._own_channel is not None:
            close_channel(self._own_channel, wait_seconds=0)
            self._own_channel = None

    def _wake(self, _call: Any) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Return when ``ready``, however long, as long as the daemon takes messages.

        A call that is lost is made again; raises what the daemon answered if it has refused it.
        """
        while (failure := self._failure(ready)) is not None:
            delay = self._attempts.delay(self._outbox.sent)
            if self._aborted or delay is None or not isinstance(failure, UnavailableError):
                self.abort()
                raise failure
            self._begin_again(failure, delay)

    def _begin_again(self, failure: ForemoeError, delay: float) -> None:
        """Another call, by a new channel: it finds a restarted daemon without a backoff."""
        with self._changed:
            self._call.cancel()
            self._outbox.end_call()  # it may take no more: what was sent is settled
            if not self._outbox.is_repeatable:
                self.abort()
                raise UnavailableError(
                    f"{failure}; the upload had sent more than {REPEATABLE_BYTES >> 20} MiB, the "
                    "most that is kept to be sent again: send its sequences again, in several "
                    "uploads"
                )
            if self._changed.wait_for(lambda: self._aborted, delay):
                raise self._ended_error()
            self._close_own_channel()
            self._own_channel = self._new_channel()
            self._begin_call()

    def _failure(self, ready: Callable[[], bool]) -> ForemoeError | None:
        """Why the call under way has failed; None when it has not and is ``ready``."""
        with self._changed:
            while not self._call.done():
                if ready():
                    return None
                if not self._changed.wait(self._timeout_seconds):
                    return self._silence()
        try:
            self._call.result()
        except grpc.FutureCancelledError:
            return self._ended_error()
        except grpc.RpcError as failure:
            return local_error(failure, self._address)
        return None

    def _silence(self) -> UnavailableError:
        what = "took nothing for", "nothing of the upload was kept, send it again"
        if self._outbox.is_complete:
            what = (
                "did not answer in",
                "whether the upload was kept is not known, sending it again is safe",
            )
        return UnavailableError(
            f"the runtime at {self._address.target} {what[0]} {self._timeout_seconds} s; {what[1]}"
        )

    def _ended_error(self) -> UnavailableError:
        return UnavailableError(
            f"the upload to {self._address.target} was ended before; nothing of it was kept, "
            "send it again"
        )
