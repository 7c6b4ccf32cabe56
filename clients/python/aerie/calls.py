"""The calls that are answered once, for both clients: what they are given, what is sent, what the answer means.

Each may be sent again: those that change something are known by their request's id, or change nothing more.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

import grpc
from google.protobuf.message import Message

from . import v1
from .course import random_id
from .errors import Error
from .wire import M, decode, encode, unexpected

T = TypeVar("T")

GENERATE = "/aerie.v1.Inference/Generate"
ATTACH = "/aerie.v1.Inference/Attach"

CHUNK_BYTES = 256 << 10
"""Bytes of a piece of a session's file."""
PAGE_SESSIONS = 1000
"""Sessions asked for at once."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call: `requests` go to `method`, and `answer` makes something of all responses."""

    method: str
    requests: Callable[[], Iterator[bytes]]
    answer: Callable[[list[bytes]], T]
    is_stream: bool = False
    """Whether there may be other than one request."""
    deletes: bool = False
    """Whether it is done if, sent again after no answer came, it finds nothing there."""

    def is_done(self, error: Error) -> bool:
        """Whether the call, now refused with `error`, had been run when no answer came."""
        return self.deletes and error.code is grpc.StatusCode.NOT_FOUND


def session(id: str) -> Call[v1.Session]:
    """One session, by its id or its name."""
    return _unary("Sessions/GetSession", v1.GetSessionRequest(session_id=id), v1.Session)


def delete_session(id: str, *, expected_position: int | None = None) -> Call[None]:
    """Has the server forget an idle session."""
    request = v1.DeleteSessionRequest(session_id=id, expected_position=expected_position)
    call = _unary("Sessions/DeleteSession", request, v1.DeleteSessionResponse)
    return Call(call.method, call.requests, lambda _: None, deletes=True)


def fork_session(
    id: str,
    *,
    position: int | None = None,
    new_session_id: str = "",
    expected_position: int | None = None,
    request_id: str = "",
) -> Call[v1.Session]:
    """Makes a session that stands where another stands or, at `position`, has stood.

    `id` may be the other's name. The session gets `new_session_id`, or a random id.
    """
    request = v1.ForkSessionRequest(
        session_id=id,
        position=position,
        new_session_id=new_session_id or random_id(),
        expected_position=expected_position,
        request_id=request_id or random_id(),
    )
    return _unary("Sessions/ForkSession", request, v1.Session)


def rewind_session(
    id: str, position: int, *, expected_position: int | None = None, request_id: str = ""
) -> Call[v1.Session]:
    """Takes an idle session back to a position where it has stood."""
    request = v1.RewindSessionRequest(
        session_id=id,
        position=position,
        expected_position=expected_position,
        request_id=request_id or random_id(),
    )
    return _unary("Sessions/RewindSession", request, v1.Session)


def name_session(
    id: str, name: str, *, expected_position: int | None = None
) -> Call[v1.Session]:
    """Gives a session a name, under which it can be forked; an empty one takes it away."""
    request = v1.NameSessionRequest(
        session_id=id, name=name, expected_position=expected_position
    )
    return _unary("Sessions/NameSession", request, v1.Session)


def move_session(
    id: str, device: str, *, expected_position: int | None = None
) -> Call[v1.Session]:
    """Brings a session, by its id or its name, to another device of the server, as `Session.device` names it.

    It may be generating; who reads it does not notice.
    """
    request = v1.MoveSessionRequest(
        session_id=id, device=device, expected_position=expected_position
    )
    return _unary("Sessions/MoveSession", request, v1.Session)


def export_session(id: str, *, expected_position: int | None = None) -> Call[bytes]:
    """An idle session, by its id or its name, as a sealed file."""
    request = v1.ExportSessionRequest(session_id=id, expected_position=expected_position)

    def join(responses: list[bytes]) -> bytes:
        return b"".join(decode(v1.Chunk, it).data for it in responses)

    return Call("/aerie.v1.Sessions/ExportSession", lambda: iter([encode(request)]), join)


def import_session(file: bytes, *, session_id: str = "", request_id: str = "") -> Call[v1.Session]:
    """Makes a session of a sealed file, under the id that is in it or under `session_id`."""
    start = v1.ImportStart(session_id=session_id, request_id=request_id or random_id())

    def requests() -> Iterator[bytes]:
        yield encode(v1.ImportSessionRequest(start=start))
        for at in range(0, len(file), CHUNK_BYTES):
            chunk = v1.Chunk(data=file[at : at + CHUNK_BYTES])
            yield encode(v1.ImportSessionRequest(chunk=chunk))

    method = "/aerie.v1.Sessions/ImportSession"
    return Call(method, requests, lambda data: _only(v1.Session, data), is_stream=True)


def models() -> Call[list[v1.Model]]:
    """What the server serves."""
    call = _unary("Models/ListModels", v1.ListModelsRequest(), v1.ListModelsResponse)
    return Call(call.method, call.requests, lambda data: list(call.answer(data).models))


def page(token: str) -> Call[v1.ListSessionsResponse]:
    """A page of sessions; the first one has an empty token."""
    request = v1.ListSessionsRequest(page_size=PAGE_SESSIONS, page_token=token)
    return _unary("Sessions/ListSessions", request, v1.ListSessionsResponse)


def signature(call: Callable[..., object]) -> inspect.Signature:
    """That of the method that makes a call, for `help()`."""
    signature = inspect.signature(call)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    [answer] = get_args(signature.return_annotation)
    return signature.replace(
        parameters=[this, *signature.parameters.values()], return_annotation=answer
    )


def _unary(method: str, request: Message, answer: type[M]) -> Call[M]:
    data = encode(request)
    return Call(f"/aerie.v1.{method}", lambda: iter([data]), lambda it: _only(answer, it))


def _only(kind: type[M], responses: list[bytes]) -> M:
    if len(responses) != 1:
        raise unexpected()
    return decode(kind, responses[0])
