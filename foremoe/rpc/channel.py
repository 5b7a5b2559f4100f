"""A client's channel to a daemon."""

import threading

import grpc
import grpc.aio

from foremoe.errors import InvalidInputError
from foremoe.rpc.address import Address, UnixAddress
from foremoe.rpc.credentials import Credentials
from foremoe.rpc.own_socket import TokenForOwnSocket, check_own
from foremoe.rpc.protocol import user_agent

# Own subchannels and the shortest backoff gRPC allows: a restarted daemon is found again soon. A
# proxy never stands between a rank and its own node.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", user_agent()),
)
# A peer whose machine or link is gone says nothing: ask whether it is there, also between calls. A
# link that is only slow lets TCP go on, but may hold the answer back for a while.
KEEPALIVE_SECONDS = 2
LINK_SECONDS = 5  # gRPC's keepalive timeout bounds how long TCP may go without acknowledgement
SILENCE_SECONDS = 10
_TCP_OPTIONS = (
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", LINK_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", SILENCE_SECONDS * 1000),
)


def open_channel(address: Address, credentials: Credentials | None = None) -> grpc.Channel:
    """A lazy channel; open it only after the last fork, gRPC threads do not survive one.

    credentials: None takes those that the environment names. Raises InvalidInputError when their
    files cannot be used, the address is too open for them, or the socket is another user's.
    """
    options = _options(address)
    shown = _channel_credentials(address, credentials)
    if shown is None:
        return grpc.insecure_channel(address.target, options=options)
    return grpc.secure_channel(address.target, shown, options=options)


def open_async_channel(
    address: Address, credentials: Credentials | None = None
) -> grpc.aio.Channel:
    """The same for the running event loop."""
    options = _options(address)
    shown = _channel_credentials(address, credentials)
    if shown is None:
        return grpc.aio.insecure_channel(address.target, options=options)
    return grpc.aio.secure_channel(address.target, shown, options=options)


def close_channel(channel: grpc.Channel, wait_seconds: float = 1.0) -> None:
    """Close, without waiting for a peer that has stopped reading.

    gRPC's close returns only when the last write has gone through, which a frozen daemon never
    lets happen; after ``wait_seconds`` that wait goes on in a background thread.
    """
    closing = threading.Thread(target=channel.close, name="foremoe-close", daemon=True)
    closing.start()
    closing.join(wait_seconds)


def _options(address: Address) -> tuple[tuple[str, int | str], ...]:
    return _OPTIONS if isinstance(address, UnixAddress) else _OPTIONS + _TCP_OPTIONS


def _channel_credentials(
    address: Address, given: Credentials | None
) -> grpc.ChannelCredentials | None:
    """TLS on TCP if it is configured, the socket's own protection otherwise; and the token."""
    credentials = Credentials.from_environment() if given is None else given
    token = credentials.read_token()
    if isinstance(address, UnixAddress):
        check_own(address.path, shows_token=token is not None)
        if token is None:
            return None
        return grpc.composite_channel_credentials(
            grpc.local_channel_credentials(grpc.LocalConnectionType.UDS),
            grpc.metadata_call_credentials(TokenForOwnSocket(address.path, token)),
        )
    pem = credentials.read_tls()
    if pem is None:
        _check_clear_text(address.is_loopback, address.target, token is not None)
        return None
    channel = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
    if token is None:
        return channel
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def _check_clear_text(is_loopback: bool, target: str, has_token: bool) -> None:
    if not is_loopback:
        raise InvalidInputError(
            f"{target} is reached with mutual TLS only; give --tls-cert, --tls-key and --tls-ca, "
            "or FOREMOE_TLS_CERT, FOREMOE_TLS_KEY and FOREMOE_TLS_CA in the environment"
        )
    if has_token:
        raise InvalidInputError(
            f"a token is not sent to {target} in clear text, where anybody may listen; "
            "use the daemon's unix socket, or TLS"
        )
