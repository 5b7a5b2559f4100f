"""What one call of an upload takes is sent again by the next one, and by no call twice."""

from foremoe.client.outbox import Outbox
from foremoe.rpc.v1.foresight_pb2 import ForesightCommit, UploadForesightRequest


def message(number: int) -> UploadForesightRequest:
    return UploadForesightRequest(commit=ForesightCommit(chunks=number))


def test_a_new_call_sends_all_from_the_first_message_on() -> None:
    outbox = Outbox(kept_bytes=1000)
    for number in range(3):
        outbox.put(message(number))
    first = outbox.messages()
    assert [next(first), next(first)] == [message(0), message(1)]
    second = outbox.messages()
    outbox.put(message(3), last=True)
    assert list(first) == []
    assert list(second) == [message(number) for number in range(4)]


def test_a_call_that_has_ended_takes_nothing_that_the_next_one_would_miss() -> None:
    outbox = Outbox(kept_bytes=message(0).ByteSize())
    outbox.put(message(0))
    outbox.put(message(1))
    call = outbox.messages()
    assert next(call) == message(0)
    outbox.end_call()
    assert list(call) == []
    assert outbox.is_repeatable
