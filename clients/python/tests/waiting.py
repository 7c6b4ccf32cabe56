"""The asyncio client with the methods of the other one, so that one test has both."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aerie


class Waiting:
    """An `aerie.aio.Client` and its loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loop = asyncio.new_event_loop()

        async def connect() -> aerie.aio.Client:
            return aerie.aio.Client(*args, **kwargs)

        self.it: Any = self.loop.run_until_complete(connect())

    def __getattr__(self, name: str) -> Any:
        return wrap(self.loop, getattr(self.it, name))

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self.it.close())
        self.loop.close()


def wrap(loop: asyncio.AbstractEventLoop, it: Any) -> Any:
    """A value of the asyncio client, as the other client has it."""
    if inspect.iscoroutine(it):
        return wrap(loop, loop.run_until_complete(it))
    if isinstance(it, (aerie.aio.Client, aerie.aio.Events)):
        waiting = Waiting.__new__(Following if isinstance(it, aerie.aio.Events) else Waiting)
        waiting.loop, waiting.it = loop, it
        return waiting
    if isinstance(it, AsyncIterator):
        return iterate(loop, it)
    if callable(it):
        return lambda *args, **kwargs: wrap(loop, it(*args, **kwargs))
    return it


def iterate(loop: asyncio.AbstractEventLoop, it: AsyncIterator[Any]) -> Iterator[Any]:
    end = object()
    while (item := loop.run_until_complete(anext(it, end))) is not end:
        yield item


class Following(Waiting):
    def __iter__(self) -> "Following":
        return self

    def __next__(self) -> Any:
        try:
            return self.loop.run_until_complete(anext(self.it))
        except StopAsyncIteration:
            raise StopIteration from None
