"""The asyncio client. Whatever it has in common with the synchronous one is elsewhere; here is its IO."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import grpc
import grpc.aio

from . import calls, course, v1
from .calls import Call
from .course import CANCEL, Course, Event, Options, Prompt, Turn
from .errors import Error, Interrupted
from .retry import Backoff, Retry
from .wire import OPTIONS, Path, Server

P = ParamSpec("P")
T = TypeVar("T")


def _asks(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate["Client", P], Coroutine[Any, Any, T]]:
    """The method that makes a call of `calls`."""

    @wraps(call)
    async def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(*args, **kwargs))

    method.__dict__["__signature__"] = calls.signature(call)
    return method


class Client:
    """A connection to a server, which comes about with the first call; to be closed, or used in an `async with`.

    It belongs to the loop that runs when it is made. Every call is repeatable, and asked again by itself when the
    connection is lost or the server is busy, for as long as `retry` says.
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
        """See `aerie.Client`."""
        self._server = Server(
            address, certificate=certificate, client_certificate=client_certificate, token=token
        )
        self._retry = retry
        target, credentials = self._server.target, self._server.credentials
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, OPTIONS)

    def with_retry(self, retry: Retry) -> "Client":
        """The same connection, with another patience."""
        client = object.__new__(type(self))
        client.__dict__.update(self.__dict__, _retry=retry)
        return client

    async def close(self) -> None:
        """Leaves. Generations of this connection end with it, unless their sessions are kept."""
        await self._channel.close()

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> "Generation":
        """A generation, to be iterated over or `read()`. It begins when its first event is asked for."""
        start = course.start(prompt, self._retry, options)
        return Generation(self, calls.GENERATE, Course(start, self._retry))

    def attach(self, id: str, from_position: int = 0) -> "Events":
        """What a session has said from a position on, then what it says as it comes."""
        request = v1.AttachRequest(session_id=id, from_position=from_position)
        return Events(self, calls.ATTACH, Course(request, self._retry))

    async def sessions(self) -> AsyncIterator[v1.Session]:
        """Every session that the server has, in no order; asked for page by page."""
        page = await self._run(calls.page(""))
        for session in page.sessions:
            yield session
        while page.next_page_token:
            page = await self._run(calls.page(page.next_page_token))
            for session in page.sessions:
                yield session

    session = _asks(calls.session)
    delete_session = _asks(calls.delete_session)
    fork_session = _asks(calls.fork_session)
    rewind_session = _asks(calls.rewind_session)
    name_session = _asks(calls.name_session)
    move_session = _asks(calls.move_session)
    export_session = _asks(calls.export_session)
    import_session = _asks(calls.import_session)
    models = _asks(calls.models)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}({self._server.address!r})"

    async def _run(self, call: Call[T]) -> T:
        backoff, was_lost = Backoff(self._retry), False
        while True:
            attempt = _Attempt(self._server, self._channel, call.method)
            try:
                attempt.begin(call.requests(), is_stream=call.is_stream)
                responses = []
                while (response := await attempt.read()) is not None:
                    responses.append(response)
                return call.answer(responses)
            except Error as error:
                if was_lost and call.is_done(error):
                    return call.answer([])
                wait = backoff.wait(error, time.monotonic(), random.random())
                if wait is None:
                    raise
                was_lost = was_lost or isinstance(error, Interrupted)
            finally:
                attempt.end()
            await asyncio.sleep(wait)


class Events(AsyncIterator[Event]):
    """What a session says: an asynchronous iterator of events, which ends after `Finished`.

    It survives its connection: it is asked for again, and tells each token and each byte of text once. An error that
    it raises is its end; a wait that is cancelled, as by `asyncio.timeout`, is not.
    """

    def __init__(self, client: Client, method: str, course: Course) -> None:
        self._client = client
        self._method = method
        self._course = course
        self._attempt: _Attempt | None = None

    async def read(self) -> Turn:
        """All of it, when it has ended."""
        turn = Turn()
        async for event in self:
            turn.add(event)
        return turn

    async def close(self) -> None:
        """Stops listening, and nothing more comes. Whether the session goes on depends on the session."""
        self._course.is_over = True
        self._hang_up()

    async def __anext__(self) -> Event:
        while not self._course.is_over:
            try:
                event = self._course.take(await self._listen())
            except Error as error:
                self._hang_up()
                if not self._course.is_over:
                    await asyncio.sleep(self._course.wait(error))
                continue
            except BaseException:
                self._hang_up()
                self._course.drop()
                raise
            if self._course.is_over:
                self._hang_up()
            if event is not None:
                return event
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        # Tasks of gRPC's hold the call, so that dropping it would not end it.
        self._hang_up()

    async def _listen(self) -> bytes | None:
        attempt = self._attempt
        if attempt is None:
            attempt = _Attempt(self._client._server, self._client._channel, self._method)
            self._attempt = attempt
            await self._begin(attempt, self._course.ask())
        return await attempt.read()

    async def _begin(self, attempt: "_Attempt", request: bytes) -> None:
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

    async def cancel(self) -> None:
        """Asks the server to end the generation after the current step; `Finished` still comes."""
        self._course.is_cancelled = True
        if self._attempt is not None:
            await self._attempt.send(CANCEL)

    async def _begin(self, attempt: "_Attempt", request: bytes) -> None:
        attempt.begin(None, is_stream=True)
        await attempt.send(request)
        if self._course.is_cancelled:
            await attempt.send(CANCEL)


class _Attempt:
    """One call of gRPC."""

    def __init__(self, server: Server, channel: grpc.aio.Channel, method: str) -> None:
        self._server = server
        self._channel = channel
        self._method = method
        self._call: Any = None
        # Requests are written one at a time.
        self._writing = asyncio.Lock()

    def begin(self, requests: Iterator[bytes] | None, *, is_stream: bool) -> None:
        """Begins it with `requests`, or with those that are sent later."""
        metadata = self._server.metadata
        if requests is None or is_stream:
            many: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            many = self._channel.stream_stream(self._method)
            self._call = many(requests, metadata=metadata)
        else:
            one: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
            one = self._channel.unary_stream(self._method)
            self._call = one(next(requests), metadata=metadata)

    async def send(self, request: bytes) -> None:
        try:
            async with self._writing:
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The call has ended; who reads is told why.
            pass

    async def read(self) -> bytes | None:
        """The next response; None after the last."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise self._server.error(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # It was the call that was cancelled, as by closing the connection.
            code = grpc.StatusCode.CANCELLED
            raise Interrupted("connection lost: the call was cancelled", code) from None
        if response is grpc.aio.EOF:
            return None
        self._server.has_answered = True
        return bytes(response)

    def end(self) -> None:
        if self._call is not None:
            self._call.cancel()
