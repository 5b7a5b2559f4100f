"""A client's channel to the daemon of its node."""

import threading

import grpc
import grpc.aio

from foremoe.rpc.address import Address

# Own subchannels and the shortest backoff gRPC allows: a restarted daemon is found again soon. A
# proxy never stands between a rank and its own node.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
)
_CLOSE_SECONDS = 1.0


def open_channel(address: Address) -> grpc.Channel:
    """A lazy channel; open it only after the last fork, gRPC threads do not survive one."""
    return grpc.insecure_channel(address.target, options=_OPTIONS)


def open_async_channel(address: Address) -> grpc.aio.Channel:
    """The same for the running event loop."""
    return grpc.aio.insecure_channel(address.target, options=_OPTIONS)


def close_channel(channel: grpc.Channel) -> None:
    """Close, without waiting for a peer that has stopped reading.

    gRPC's close returns only when the last write has gone through, which a frozen daemon never
    lets happen; after a second that wait goes on in a background thread.
    """
    closing = threading.Thread(target=channel.close, name="foremoe-close", daemon=True)
    closing.start()
    closing.join(_CLOSE_SECONDS)
