"""When to ask again, and how long to wait before."""

import math

import grpc

from aerie import Contradiction, Error, Interrupted, Rejected, Retry, Unreachable, UnexpectedAnswer
from aerie.retry import Backoff

LOST = Interrupted("connection lost")


def test_waits_double_up_to_a_limit() -> None:
    backoff = Backoff(Retry(patience=3600))
    waits = [backoff.wait(LOST, 7, 1.0) for _ in range(9)]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.progressed()
    assert backoff.wait(LOST, 7, 0.5) == 0.025


def test_what_the_server_asks_for_is_the_least() -> None:
    busy = Rejected("busy", grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.25)
    assert Backoff(Retry()).wait(busy, 7, 0.0) == 0.25
    assert Backoff(Retry()).wait(busy, 7, 1.0) == 0.3


def test_patience_ends_and_progress_renews_it() -> None:
    backoff = Backoff(Retry(patience=2))
    assert backoff.wait(LOST, 0, 0.0) is not None
    assert backoff.wait(LOST, 1.999, 0.0) is not None
    assert backoff.wait(LOST, 2, 0.0) is None
    backoff.progressed()
    assert backoff.wait(LOST, 2, 0.0) is not None
    endless = Backoff(Retry(patience=math.inf))
    assert [endless.wait(LOST, it * 1e9, 0.0) is None for it in range(3)] == [False] * 3
    assert Backoff(Retry.NEVER).wait(LOST, 0, 0.0) is None


def test_what_would_fail_again_is_not_asked_again() -> None:
    code = grpc.StatusCode
    for error, helps in [
        (Rejected("", code.INVALID_ARGUMENT), False),
        (Rejected("", code.FAILED_PRECONDITION), False),
        (Rejected("", code.NOT_FOUND), False),
        (Rejected("", code.INTERNAL), False),
        (Rejected("", code.UNAVAILABLE), True),
        (UnexpectedAnswer(""), False),
        (Contradiction("", position=3), False),
        (Unreachable(""), False),
    ]:
        assert isinstance(error, Error)
        assert (Backoff(Retry()).wait(error, 0, 0.0) is not None) == helps, repr(error)
