"""The messages of one upload: those to send, and those sent that can be sent again."""

import threading
from collections import deque
from collections.abc import Iterator

from foremoe.rpc.v1.foresight_pb2 import UploadForesightRequest

QUEUED_CHUNKS = 64


class Outbox:
    """Filled by one thread, emptied by that of the call under way.

    kept_bytes: of messages that were sent, to send again to another daemon; an upload that sends
    more keeps none of them. changed: notified whenever the call takes a message.
    """

    def __init__(self, kept_bytes: int) -> None:
        self.changed = threading.Condition()
        self.sent = 0  # messages taken by the call under way
        self._kept_bytes = kept_bytes
        self._waiting: deque[UploadForesightRequest] = deque()
        self._kept: list[UploadForesightRequest] | None = []
        self._sent_bytes = 0
        self._complete = False
        self._calls = 0

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < QUEUED_CHUNKS

    @property
    def is_complete(self) -> bool:
        """Whether the last message was put."""
        return self._complete

    @property
    def is_repeatable(self) -> bool:
        return self._kept is not None

    def put(self, message: UploadForesightRequest, *, last: bool = False) -> None:
        """Send ``message`` behind those that wait."""
        with self.changed:
            self._waiting.append(message)
            self._complete = last
            self.changed.notify_all()

    def messages(self) -> Iterator[UploadForesightRequest]:
        """All messages from the first one, for a new call; earlier calls get no more.

        Only while the outbox is repeatable, or at first.
        """
        with self.changed:
            self.end_call()
            if self._kept:
                self._waiting.extendleft(reversed(self._kept))
                self._kept = []
            self.sent = self._sent_bytes = 0
            return self._of_call(self._calls)

    def end_call(self) -> None:
        """The call under way gets no more messages."""
        with self.changed:
            self._calls += 1
            self.changed.notify_all()

    def close(self) -> None:
        """End the call's iterator, and drop everything."""
        with self.changed:
            self.end_call()
            self._waiting.clear()
            self._kept = None

    def _of_call(self, call: int) -> Iterator[UploadForesightRequest]:
        while (message := self._take(call)) is not None:
            yield message

    def _take(self, call: int) -> UploadForesightRequest | None:
        with self.changed:
            self.changed.wait_for(lambda: call != self._calls or self._waiting or self._complete)
            if call != self._calls or not self._waiting:
                return None
            message = self._waiting.popleft()
            self.sent += 1
            self._keep(message)
            self.changed.notify_all()
            return message

    def _keep(self, message: UploadForesightRequest) -> None:
        if self._kept is None:
            return
        self._kept.append(message)
        self._sent_bytes += message.ByteSize()
        if self._sent_bytes > self._kept_bytes:
            self._kept = None
