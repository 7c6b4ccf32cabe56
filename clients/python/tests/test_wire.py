"""Addresses, what a client shows of itself, and the messages."""

import pathlib
import pickle
import subprocess
import sys

import pytest

import aerie
from aerie.wire import encode, parse_address

MESSAGES = pathlib.Path(__file__).resolve().parents[1] / "messages.py"


def test_messages_are_those_of_the_wire() -> None:
    subprocess.run([sys.executable, MESSAGES, "--check"], check=True)


def test_messages_and_errors_can_be_carried_to_other_processes() -> None:
    delta = aerie.Delta(text="a", ids=[1], position=2)
    assert pickle.loads(pickle.dumps(delta)) == delta
    error = aerie.Rejected("no", reason="STALE_POSITION", position=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason, copy.position) == ("no", "STALE_POSITION", 3)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("grpc://a.example:1", ("grpc", "a.example:1")),
        ("http://[::1]:7447/", ("grpc", "[::1]:7447")),
        ("grpcs://a.example:1", ("grpcs", "a.example:1")),
    ],
)
def test_scheme_chooses_encryption(address: str, expected: tuple[str, str]) -> None:
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:7447", "is not of the form grpc://HOST:PORT or grpcs://HOST:PORT"),
        ("quic://localhost:7447", "is for QUIC"),
        ("grpc://localhost", "lacks a host or a port"),
        ("grpc://:7447", "lacks a host or a port"),
        ("grpc://localhost:http", "lacks a host or a port"),
        ("grpc://localhost:65536", "lacks a host or a port"),
        ("ftp://localhost:21", "has a scheme that is neither grpc nor grpcs"),
    ],
)
def test_refusals_say_what_is_wrong_with_an_address(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^address '.*' {problem}"):
        aerie.Client(address)


def test_nobody_is_trusted_by_default() -> None:
    with pytest.raises(ValueError, match="whom to trust"):
        aerie.Client("grpcs://localhost:1")
    with pytest.raises(ValueError, match="certificates are for grpcs://"):
        aerie.Client("grpc://localhost:1", certificate="x.pem")
    with pytest.raises(FileNotFoundError):
        aerie.Client("grpcs://localhost:1", certificate="no such file.pem")


def test_a_token_is_not_shown() -> None:
    with pytest.raises(ValueError, match="token") as caught:
        aerie.Client(token="sec ret")
    assert "sec" not in str(caught.value)
    assert "secret" not in repr(aerie.Client(token="secret"))


def test_what_is_too_large_for_the_wire_is_not_sent() -> None:
    with pytest.raises(ValueError, match="^Start has .* bytes, but a message may have 1048576"):
        encode(aerie.v1.Start(text="a" * (1 << 20)))
