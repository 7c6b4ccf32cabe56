"""Talks to an Aerie server: streams tokens out of sessions, and keeps sessions.

    with aerie.Client("grpc://127.0.0.1:7447") as client:
        for event in client.generate("Once upon a time", max_tokens=64):
            match event:
                case aerie.Delta():
                    print(event.text, end="", flush=True)

`aerie.aio.Client` is the same for asyncio. Events, sessions and models are the messages of `aerie.v1`, which are those of
aerie.proto. `python -m aerie --help` shows a small command.
"""

from . import aio, v1
from .client import Client, Events, Generation
from .course import Event, Options, Prompt, Turn, random_id
from .errors import Contradiction, Error, Interrupted, Rejected, UnexpectedAnswer, Unreachable
from .retry import Retry
from .v1 import Accepted, Attached, Delta, Finished, Model, Sampling, Session

__all__ = [
    "Accepted",
    "Attached",
    "Client",
    "Contradiction",
    "Delta",
    "Error",
    "Event",
    "Events",
    "Finished",
    "Generation",
    "Interrupted",
    "Model",
    "Options",
    "Prompt",
    "Rejected",
    "Retry",
    "Sampling",
    "Session",
    "Turn",
    "UnexpectedAnswer",
    "Unreachable",
    "aio",
    "random_id",
    "v1",
]
