"""The synchronous client. Whatever it has in common with the asyncio one is elsewhere; here is its IO."""

import random
import time
from collections.abc import Callable, Iterator
from functools import wraps
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc

from . import calls, course, v1
from .calls import Call
from .course import CANCEL, Course, Event, Options, Prompt, Turn
from .errors import Error, Interrupted
from .retry import Backoff, Retry
from .wire import OPTIONS, Path, Server

P = ParamSpec("P")
T = TypeVar("T")


def _asks(call: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    """The method that makes a call of `calls`."""

    @wraps(call)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(*args, **kwargs))

    method.__dict__["__signature__"] = calls.signature(call)
    return method


class Client:
    """A connection to a server, which comes about with the first call; to be closed, or used in a `with`.

    It may be shared by threads. Every call is repeatable, and asked again by itself when the connection is lost or the
    server is busy, for as long as `retry` says.
    """

    def __init__(
        self,
        address: str = "grpc://127.0.0.1:7447",
        *,
        certificate: Path | None = None,
        client_certificate: tuple[Path, Path] | None = None,
        token: str | None = None,
        retry: Retry = Retry(),
    ) -> None:
        """For `grpc://HOST:PORT`, or `grpcs://HOST:PORT` with TLS.

        With TLS, the certificates in the PEM file `certificate` are trusted, and nobody else. `client_certificate` are
        the PEM files of a certificate and its key, for servers that ask for one; `token` goes with every call, and over
        `grpc://` whoever listens can read it.
        """
        self._server = Server(
            address, certificate=certificate, client_certificate=client_certificate, token=token
        )
        self._retry = retry
        target, credentials = self._server.target, self._server.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(target, OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, OPTIONS)

    def with_retry(self, retry: Retry) -> "Client":
        """The same connection, with another patience."""
        client = object.__new__(type(self))
        client.__dict__.update(self.__dict__, _retry=retry)
        return client

    def close(self) -> None:
        """Leaves. Generations of this connection end with it, unless their sessions are kept."""
        self._channel.close()

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> "Generation":
        """A generation, to be iterated over or `read()`. It begins when its first event is asked for."""
        start = course.start(prompt, self._retry, options)
        return Generation(self, calls.GENERATE, Course(start, self._retry))

    def attach(self, id: str, from_position: int = 0) -> "Events":
        """What a session has said from a position on, then what it says as it comes."""
        request = v1.AttachRequest(session_id=id, from_position=from_position)
        return Events(self, calls.ATTACH, Course(request, self._retry))

    def sessions(self) -> Iterator[v1.Session]:
        """Every session that the server has, in no order; asked for page by page."""
        page = self._run(calls.page(""))
        yield from page.sessions
        while page.next_page_token:
            page = self._run(calls.page(page.next_page_token))
            yield from page.sessions

    session = _asks(calls.session)
    delete_session = _asks(calls.delete_session)
    fork_session = _asks(calls.fork_session)
    rewind_session = _asks(calls.rewind_session)
    name_session = _asks(calls.name_session)
    move_session = _asks(calls.move_session)
    export_session = _asks(calls.export_session)
    import_session = _asks(calls.import_session)
    models = _asks(calls.models)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}({self._server.address!r})"

    def _run(self, call: Call[T]) -> T:
        backoff, was_lost = Backoff(self._retry), False
        while True:
            try:
                attempt = _Attempt(self._server, self._channel, call.method)
                attempt.begin(call.requests(), is_stream=call.is_stream)
                return call.answer(list(attempt))
            except Error as error:
                if was_lost and call.is_done(error):
                    return call.answer([])
                wait = backoff.wait(error, time.monotonic(), random.random())
                if wait is None:
                    raise
                was_lost = was_lost or isinstance(error, Interrupted)
            time.sleep(wait)


class Events(Iterator[Event]):
    """What a session says: an iterator of events, which ends after `Finished`.

    It survives its connection: it is asked for again, and tells each token and each byte of text once. An error that
    it raises is its end; an exception from elsewhere, such as `KeyboardInterrupt`, is not.
    """

    def __init__(self, client: Client, method: str, course: Course) -> None:
        self._client = client
        self._method = method
        self._course = course
        self._attempt: _Attempt | None = None

    def read(self) -> Turn:
        """All of it, when it has ended."""
        turn = Turn()
        for event in self:
            turn.add(event)
        return turn

    def close(self) -> None:
        """Stops listening, and nothing more comes. Whether the session goes on depends on the session."""
        self._course.is_over = True
        self._hang_up()

    def __next__(self) -> Event:
        while not self._course.is_over:
            try:
                event = self._course.take(self._listen())
            except Error as error:
                self._hang_up()
                if not self._course.is_over:
                    time.sleep(self._course.wait(error))
                continue
            except BaseException:
                self._hang_up()
                self._course.drop()
                raise
            if self._course.is_over:
                self._hang_up()
            if event is not None:
                return event
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> bytes | None:
        attempt = self._attempt
        if attempt is None:
            attempt = _Attempt(self._client._server, self._client._channel, self._method)
            # Where anybody can cancel it, before it is seen whether somebody has.
            self._attempt = attempt
            self._begin(attempt, self._course.ask())
        return next(attempt, None)

    def _begin(self, attempt: "_Attempt", request: bytes) -> None:
        attempt.begin(iter([request]), is_stream=False)

    def _hang_up(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()


class Generation(Events):
    """What a session says to a prompt.

    Leaving it cancels the generation, unless its session is kept: that one goes on for a while without a reader.
    `cancel` ends any.
    """

    def cancel(self) -> None:
        """Asks the server to end the generation after the current step; `Finished` still comes.

        May be called from another thread, or from the handler of a signal.
        """
        self._course.is_cancelled = True
        if self._attempt is not None:
            self._attempt.send(CANCEL)

    def _begin(self, attempt: "_Attempt", request: bytes) -> None:
        attempt.send(request)
        attempt.begin(attempt.requests(), is_stream=True)
        if self._course.is_cancelled:
            attempt.send(CANCEL)


class _Attempt(Iterator[bytes]):
    """One call of gRPC: an iterator of its responses."""

    def __init__(self, server: Server, channel: grpc.Channel, method: str) -> None:
        self._server = server
        self._channel = channel
        self._method = method
        self._call: Any = None
        # None is the end. Of all queues this kind may be used by whoever interrupts its use.
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()

    def begin(self, requests: Iterator[bytes], *, is_stream: bool) -> None:
        metadata = self._server.metadata
        if is_stream:
            many: grpc.StreamStreamMultiCallable[bytes, bytes]
            many = self._channel.stream_stream(self._method)
            self._call = many(requests, metadata=metadata)
        else:
            one: grpc.UnaryStreamMultiCallable[bytes, bytes]
            one = self._channel.unary_stream(self._method)
            self._call = one(next(requests), metadata=metadata)
        # Or a thread of gRPC's would wait for requests for ever. It holds the queue and not this, so that who drops this
        # ends the call.
        queue = self._requests
        if not self._call.add_callback(lambda: queue.put(None)):
            queue.put(None)

    def send(self, request: bytes) -> None:
        self._requests.put(request)

    def requests(self) -> Iterator[bytes]:
        return iter(self._requests.get, None)

    def end(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def __next__(self) -> bytes:
        try:
            response: bytes = next(self._call)
        except grpc.RpcError as error:
            raise self._server.error(error) from error
        self._server.has_answered = True
        return response
