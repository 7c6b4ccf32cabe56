"""A server in this process that says what a test tells it to, attempt after attempt."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from aerie import v1

Attempt = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[Message]]


class Fake(grpc.GenericRpcHandler):
    """Answers one call after the other with `attempts`, and keeps what it was asked."""

    def __init__(self, *attempts: Attempt) -> None:
        self.attempts = deque(attempts)
        self.asked: list[tuple[str, list[bytes]]] = []
        self.metadata: dict[str, Any] = {}
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def service(self, details: Any) -> Any:
        self.metadata = dict(details.invocation_metadata)
        heard: list[bytes] = []
        self.asked.append((details.method, heard))
        attempt = self.attempts.popleft()

        def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            heard.append(next(requests))

            def rest() -> Iterator[bytes]:
                for request in requests:
                    heard.append(request)
                    yield request

            yield from (it.SerializeToString() for it in attempt(rest(), context))

        return grpc.stream_stream_rpc_method_handler(answer)


def says(*messages: Message) -> Attempt:
    """Says `messages`, and no more."""
    return lambda requests, context: iter(messages)


def breaks(*messages: Message) -> Attempt:
    """Says `messages`, then it is as if the connection were lost."""

    def attempt(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        yield from messages
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    return attempt


def refuses(
    code: grpc.StatusCode, reason: str = "", retry_s: float | None = None, **metadata: str
) -> Attempt:
    """Refuses as the server does."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="aerie", metadata=metadata)
    details = [info]
    if retry_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_s * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=code.value[0], message="no")
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)

    def attempt(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[NoReturn]:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, "no")
        yield from ()

    return attempt


def accepted(position: int = 0, prompt_tokens: int = 3) -> v1.GenerateResponse:
    event = v1.Accepted(session_id="s", position=position, prompt_tokens=prompt_tokens)
    return v1.GenerateResponse(accepted=event)


def attached() -> v1.GenerateResponse:
    return v1.GenerateResponse(attached=v1.Attached(session_id="s", running=True))


def delta(position: int, ids: list[int], text: str) -> v1.GenerateResponse:
    return v1.GenerateResponse(delta=v1.Delta(position=position, ids=ids, text=text))


def finished(reason: v1.FinishReason = v1.FINISH_REASON_LENGTH) -> v1.GenerateResponse:
    return v1.GenerateResponse(finished=v1.Finished(reason=reason))
