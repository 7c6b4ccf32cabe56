"""Where a server is and how gRPC talks to it: addresses, TLS, tokens, and what a status means."""

import os
from collections.abc import Iterable
from typing import TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from .errors import Error, Interrupted, Rejected, UnexpectedAnswer, Unreachable

Path = str | os.PathLike[str]
M = TypeVar("M", bound=Message)

MESSAGE_BYTES_MAX = 1 << 20
"""A server takes no larger message."""

OPTIONS: list[tuple[str, int]] = [
    # How long a connection may take to come about, and how long until another is tried when one did not.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A server with a call open that is silent for this long is asked for a sign of life, as often as it takes.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The waits of another client in this process are not ours.
    ("grpc.use_local_subchannel_pool", 1),
]

# What gRPC's library makes of a connection that was lost or never came about.
TRANSPORT_CODES = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}


class Server:
    """A server as one client sees it: where it is, what it is shown, whether it has ever answered."""

    def __init__(
        self,
        address: str,
        *,
        certificate: Path | None,
        client_certificate: tuple[Path, Path] | None,
        token: str | None,
    ) -> None:
        scheme, authority = parse_address(address)
        self.address = address
        self.target = f"dns:///{authority}"
        self.credentials = _credentials(scheme, certificate, client_certificate)
        self.metadata = _bearer(token)
        self.has_answered = False

    def error(self, error: grpc.RpcError) -> Error:
        """What a call ended with."""
        code, words = error.code(), error.details() or "it does not say why"
        status = _Status(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
        if code in TRANSPORT_CODES and not status.is_of_server:
            if self.has_answered:
                return Interrupted(f"connection lost: {words}", code)
            return Unreachable(f"no connection to {self.address}: {words}", code)
        self.has_answered = True
        return Rejected(words, code, status.reason, status.position, status.retry_after)


def encode(message: Message) -> bytes:
    """A message for the wire; a `ValueError` if it is too large for it."""
    data = message.SerializeToString()
    if MESSAGE_BYTES_MAX < len(data):
        problem = f"has {len(data)} bytes, but a message may have {MESSAGE_BYTES_MAX}"
        raise ValueError(f"{message.DESCRIPTOR.name} {problem}")
    return data


def decode(kind: type[M], data: bytes) -> M:
    """A message off the wire."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise unexpected() from error


def unexpected() -> UnexpectedAnswer:
    """The server's answer is none."""
    code = grpc.StatusCode.INTERNAL
    return UnexpectedAnswer("the server's answer is not one to this call", code)


def parse_address(address: str) -> tuple[str, str]:
    """`grpc` or `grpcs`, and `HOST:PORT`."""
    scheme, separator, authority = address.partition("://")
    authority = authority.removesuffix("/")
    host, _, port = authority.rpartition(":")
    if not separator:
        problem = "is not of the form grpc://HOST:PORT or grpcs://HOST:PORT"
    elif scheme == "quic":
        problem = "is for QUIC, which this client does not speak; servers have gRPC beside it"
    elif scheme not in ("grpc", "http", "grpcs", "https"):
        problem = "has a scheme that is neither grpc nor grpcs"
    elif not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        problem = "lacks a host or a port"
    else:
        return {"http": "grpc", "https": "grpcs"}.get(scheme, scheme), authority
    raise ValueError(f"address {address!r} {problem}")


def _credentials(
    scheme: str, certificate: Path | None, client_certificate: tuple[Path, Path] | None
) -> grpc.ChannelCredentials | None:
    """None for a connection in plaintext."""
    if scheme == "grpc":
        if certificate is not None or client_certificate is not None:
            raise ValueError("certificates are for grpcs://, and the address is in plaintext")
        return None
    if certificate is None:
        raise ValueError("grpcs:// needs to know whom to trust: name a certificate")
    chain, key = map(_read, client_certificate or (None, None))
    return grpc.ssl_channel_credentials(_read(certificate), key, chain)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def _bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    if token is None:
        return ()
    if not all("!" <= character <= "~" for character in token) or not token:
        raise ValueError("the token has characters that no token has")
    return (("authorization", f"Bearer {token}"),)


class _Status:
    """What a status says beside its code and its words."""

    def __init__(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self.reason = ""
        self.position: int | None = None
        self.retry_after: float | None = None
        self.is_of_server = False
        for name, value in metadata:
            if name == "retry-after-ms" and self.retry_after is None:
                digits = value if isinstance(value, str) else ""
                self._come_back_after(float(digits) / 1e3 if digits.isdecimal() else None)
            elif name == "grpc-status-details-bin" and isinstance(value, bytes):
                self._read(value)

    def _read(self, data: bytes) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        try:
            for detail in status_pb2.Status.FromString(data).details:
                if detail.Unpack(info):
                    self.is_of_server = True
                    self.reason = info.reason
                    position = info.metadata.get("position", "")
                    self.position = int(position) if position.isdecimal() else None
                elif detail.Unpack(retry):
                    delay = retry.retry_delay
                    self._come_back_after(delay.seconds + delay.nanos / 1e9)
        except DecodeError:
            # Some other program's details; code and words are all that can be told.
            pass

    def _come_back_after(self, seconds: float | None) -> None:
        if seconds is not None:
            self.is_of_server = True
            self.retry_after = seconds
