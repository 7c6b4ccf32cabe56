"""How a generation runs its course, over as many answers as it takes. Does no IO; both clients drive it."""

import random
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

import grpc

from . import v1
from .errors import Error, Interrupted
from .retry import Backoff, Retry
from .stitch import Stitch
from .wire import decode, encode, unexpected

Event = v1.Accepted | v1.Attached | v1.Delta | v1.Finished
"""What a generation tells: `Accepted` or `Attached`, any number of `Delta`, `Finished`."""

Prompt = str | Sequence[int]
"""Text, or ids of tokens."""


class Options(TypedDict, total=False):
    """How a generation is to be run; aerie.proto says more of each, under `Start`."""

    model: str
    """Name of a model; the server's only or first one by default."""
    session_id: str
    """The session to go on with; a new one by default."""
    keep: bool
    """Keep the session when the generation ends."""
    sampling: v1.Sampling
    """How tokens are drawn; greedily by default."""
    max_tokens: int
    """Most tokens to generate; the server's default if 0."""
    stop: Iterable[str]
    """The generation ends before the first of these strings."""
    expected_position: int | None
    """Refuse unless the session stands here; 0 makes a session that does not exist."""
    request_id: str
    """What the request is known by when it is sent again; a random one by default."""
    fork_of: str
    """A session to begin the new one as a fork of: its id, or its name."""
    fork_position: int | None
    """Where to fork it; where it stands by default."""
    prompt_only: bool
    """Read the prompt and draw nothing."""


@dataclass
class Turn:
    """A generation that has ended, or a session that was followed, as a whole."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    accepted: v1.Accepted | None = None
    """None of a session that was followed."""
    attached: v1.Attached | None = None
    """None of a generation."""
    finished: v1.Finished = field(default_factory=v1.Finished)

    def add(self, event: Event) -> None:
        match event:
            case v1.Accepted():
                self.accepted = event
            case v1.Attached():
                self.attached = event
            case v1.Delta():
                self.text += event.text
                self.ids += event.ids
            case v1.Finished():
                self.finished = event


def start(prompt: Prompt, retry: Retry, options: Options) -> v1.Start:
    """A request with all that it takes to be sent again without being run twice."""
    start = v1.Start(**options)
    if isinstance(prompt, str):
        start.text = prompt
    else:
        start.tokens.ids.extend(prompt)
    if retry == Retry.NEVER:
        return start
    start.request_id = start.request_id or random_id()
    if not start.session_id and start.keep:
        start.session_id = random_id()
        if not start.HasField("expected_position"):
            start.expected_position = 0
    elif not start.session_id and not start.sampling.HasField("seed"):
        # It is run again, and must say the same.
        start.sampling.seed = random.getrandbits(64)
    return start


def random_id() -> str:
    """A name that nothing else has."""
    return str(uuid.uuid4())


class Course:
    """What is asked, what was heard of it, and what comes next."""

    def __init__(self, question: v1.Start | v1.AttachRequest, retry: Retry) -> None:
        self.is_over = False
        """Nothing more will come."""
        self.is_cancelled = False
        self._question = question
        self._retry = retry
        self._backoff = Backoff(retry)
        self._has_begun = False
        # None until the answer has begun.
        self._stitch: Stitch | None = None
        if isinstance(question, v1.AttachRequest):
            self._stitch = Stitch(question.from_position, repeats_all=False)

    def ask(self) -> bytes:
        """The request, to be sent now."""
        if isinstance(self._question, v1.Start):
            return encode(v1.GenerateRequest(start=self._question))
        if self._stitch is not None:
            self._question.from_position = self._stitch.mark
        return encode(self._question)

    def take(self, response: bytes | None) -> Event | None:
        """What is new of a response; None where nothing is, and for a response if there are no more."""
        if response is None:
            raise Interrupted("connection lost: the generation is not finished", _UNAVAILABLE)
        event = parse_event(decode(v1.GenerateResponse, response))
        match event:
            case v1.Accepted() | v1.Attached():
                return self._begin(event)
            case v1.Delta():
                if self._stitch is None:
                    raise unexpected()
                new = self._stitch.push(event)
                if new is not None:
                    self._backoff.progressed()
                return new
            case v1.Finished():
                # The server goes, and comes back: what it has not said yet is still to come.
                if self._goes_on(event):
                    raise Interrupted("connection lost: the server stopped", _UNAVAILABLE)
                self.is_over = True
                return event

    def wait(self, error: Error) -> float:
        """Seconds until the question is to be asked again; raises `error` if that is of no use."""
        wait = self._backoff.wait(error, time.monotonic(), random.random())
        if wait is None:
            self.is_over = True
            raise error
        return wait

    def drop(self) -> None:
        """The caller gave up waiting for an event. Who goes on asks again, if that may be done."""
        self.is_over = self.is_over or self._retry == Retry.NEVER

    def _begin(self, event: v1.Accepted | v1.Attached) -> Event | None:
        if isinstance(event, v1.Accepted) != isinstance(self._question, v1.Start):
            raise unexpected()
        if self._stitch is None and isinstance(event, v1.Accepted):
            drawn_from = event.position + event.prompt_tokens
            self._stitch = Stitch(drawn_from, repeats_all=True)
        elif self._stitch is not None:
            self._stitch.again()
        is_first, self._has_begun = not self._has_begun, True
        return event if is_first else None

    def _goes_on(self, finished: v1.Finished) -> bool:
        """Whether more can be had of what was said to be finished."""
        can_ask = isinstance(self._question, v1.Start) and self._question.keep
        is_wanted = not self.is_cancelled and self._retry != Retry.NEVER
        return finished.reason in _INTERRUPTIONS and can_ask and is_wanted


_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_INTERRUPTIONS = (v1.FINISH_REASON_SHUTDOWN, v1.FINISH_REASON_INTERRUPTED)

CANCEL = encode(v1.GenerateRequest(cancel=v1.Cancel()))


def parse_event(response: v1.GenerateResponse) -> Event:
    """The event of a response."""
    match response.WhichOneof("event"):
        case "accepted":
            return response.accepted
        case "attached":
            return response.attached
        case "delta":
            return response.delta
        case "finished":
            return response.finished
    raise unexpected()
