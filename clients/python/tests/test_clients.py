"""Both clients with a server that loses connections, is busy, refuses and contradicts itself."""

import asyncio
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fake import Fake, accepted, attached, breaks, delta, finished, refuses, says
from google.protobuf.message import Message
from waiting import Waiting

import aerie
from aerie import v1

BOTH = pytest.mark.parametrize("kind", [aerie.Client, Waiting], ids=["sync", "asyncio"])
CODE = grpc.StatusCode
SEEDS = 12


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerie.retry.FIRST_S_MAX", 1e-3)


def start(heard: list[bytes]) -> v1.Start:
    return v1.GenerateRequest.FromString(heard[0]).start


@BOTH
@pytest.mark.parametrize("follows", [False, True], ids=["generate", "attach"])
def test_every_token_and_byte_comes_once(kind: Any, follows: bool) -> None:
    """A stream that breaks anywhere, and whose deltas are cut otherwise each time."""
    for seed in range(SEEDS):
        rng = random.Random(seed)
        ids = [rng.randrange(50) for _ in range(30)]
        texts = [rng.choice(["", "a", "\N{LATIN SMALL LETTER E WITH ACUTE}"]) for _ in ids]

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            # The first token is the one at position 3.
            at = 0
            if follows:
                asked = v1.AttachRequest.FromString(fake.asked[-1][1][0])
                at = asked.from_position - 3
            yield attached() if follows else accepted()
            while at < len(ids):
                n = rng.randrange(1, 4)
                yield delta(3 + at, ids[at : at + n], "".join(texts[at : at + n]))
                at += n
                if rng.random() < 0.2 and fake.attempts:
                    context.abort(CODE.UNAVAILABLE, "gone")
            yield finished()

        with Fake(*[answer] * 6) as fake, kind(fake.address) as client:
            stream = client.attach("s", 3) if follows else client.generate("x", keep=True)
            turn = stream.read()
            assert (turn.ids, turn.text) == (ids, "".join(texts)), seed
            assert (turn.attached is not None) == follows
            if not follows:
                assert len({it[1][0] for it in fake.asked}) == 1, "it is the same request"


@BOTH
def test_what_it_takes_to_ask_again_is_put_in(kind: Any) -> None:
    whole = says(accepted(), finished())
    with Fake(*[whole] * 4) as fake, kind(fake.address) as client:
        client.generate("x", keep=True).read()
        client.generate("x").read()
        client.generate([1, 2], session_id="s", request_id="mine").read()
        client.with_retry(aerie.Retry.NEVER).generate("x").read()
        kept, fleeting, going_on, once = (start(it[1]) for it in fake.asked)
    assert kept.request_id and kept.session_id and kept.HasField("expected_position")
    assert fleeting.request_id and not fleeting.session_id and fleeting.sampling.HasField("seed")
    assert (going_on.request_id, list(going_on.tokens.ids)) == ("mine", [1, 2])
    assert not going_on.HasField("expected_position") and not going_on.HasField("sampling")
    assert once == v1.Start(text="x")


@BOTH
def test_a_busy_server_is_asked_again_when_it_says(kind: Any) -> None:
    busy = refuses(CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_s=0.01)
    whole = says(accepted(), delta(3, [1], "a"), finished())
    with Fake(busy, busy, whole, busy, says(v1.Session(position=4))) as fake:
        with kind(fake.address) as client:
            assert client.generate("x").read().text == "a"
            assert client.session("s").position == 4
            assert len(fake.asked) == 5


@BOTH
def test_refusals_say_why_and_are_not_repeated(kind: Any) -> None:
    stale = refuses(CODE.FAILED_PRECONDITION, "STALE_POSITION", session_id="s", position="41")
    with Fake(stale, stale) as fake, kind(fake.address) as client:
        for call in (client.generate("x").read, lambda: client.rewind_session("s", 3)):
            with pytest.raises(aerie.Rejected, match="^no$") as caught:
                call()
            assert caught.value.code is CODE.FAILED_PRECONDITION
            assert (caught.value.reason, caught.value.position) == ("STALE_POSITION", 41)
            assert caught.value.retry_after is None


@BOTH
def test_who_asks_once_is_told_what_happened(kind: Any) -> None:
    busy = refuses(CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_s=1.5)
    with Fake(busy, breaks(accepted(), delta(3, [1], "a"))) as fake:
        with kind(fake.address, retry=aerie.Retry.NEVER) as client:
            with pytest.raises(aerie.Rejected) as refused:
                client.generate("x").read()
            assert refused.value.retry_after == 1.5
            stream = client.generate("x")
            with pytest.raises(aerie.Interrupted, match="connection lost: gone"):
                stream.read()
            assert list(stream) == [], "an error is the end"


@BOTH
def test_patience_ends(kind: Any) -> None:
    with Fake(says(v1.ListModelsResponse()), *[breaks()] * 1000) as fake:
        with kind(fake.address, retry=aerie.Retry(patience=0.2)) as client:
            client.models()
            with pytest.raises(aerie.Interrupted):
                client.models()
            assert 2 < len(fake.asked)


@BOTH
def test_where_nobody_answers_is_told_at_once(kind: Any) -> None:
    with Fake() as fake:
        address = fake.address
    with kind(address, retry=aerie.Retry(patience=3600)) as client:
        for call in (client.models, client.generate("x").read):
            with pytest.raises(aerie.Unreachable, match=f"^no connection to {address}: "):
                call()


@BOTH
def test_a_server_that_contradicts_itself_is_found_out(kind: Any) -> None:
    first = breaks(accepted(), delta(3, [1, 2], "ab"))
    with Fake(first, says(accepted(), delta(3, [1, 9], "ab"))) as fake, kind(fake.address) as client:
        with pytest.raises(aerie.Contradiction) as caught:
            client.generate("x", keep=True).read()
        assert caught.value.position == 3


@BOTH
def test_what_a_stopped_server_left_unsaid_is_asked_for(kind: Any) -> None:
    stops = says(accepted(), delta(3, [1], "a"), finished(v1.FINISH_REASON_SHUTDOWN))
    ends = says(accepted(), delta(3, [1, 2], "ab"), finished())
    with Fake(stops, ends, stops) as fake, kind(fake.address) as client:
        turn = client.generate("x", keep=True).read()
        assert (turn.text, turn.finished.reason) == ("ab", v1.FINISH_REASON_LENGTH)
        turn = client.generate("x").read()
        assert (turn.text, turn.finished.reason) == ("a", v1.FINISH_REASON_SHUTDOWN)


@BOTH
def test_answers_to_something_else_are_refused(kind: Any) -> None:
    for wrong in (delta(3, [1], "a"), attached(), v1.GenerateResponse()):
        with Fake(says(wrong)) as fake, kind(fake.address) as client:
            with pytest.raises(aerie.UnexpectedAnswer):
                client.generate("x").read()
    with Fake(says()) as fake, kind(fake.address) as client:
        with pytest.raises(aerie.UnexpectedAnswer):
            client.session("s")


@BOTH
def test_a_generation_is_cancelled_wherever_it_is(kind: Any) -> None:
    """Also where its connection is lost at that moment: it is asked for again, and cancelled."""
    cancel = v1.GenerateRequest(cancel=v1.Cancel()).SerializeToString()

    def awaits(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        yield accepted()
        yield delta(3, [1], "a")
        assert next(requests) == cancel
        if len(fake.asked) == 1:
            context.abort(CODE.UNAVAILABLE, "gone")
        yield finished(v1.FINISH_REASON_CANCELLED)

    with Fake(awaits, awaits) as fake, kind(fake.address) as client:
        generation = client.generate("x", keep=True)
        turn = aerie.Turn()
        for event in generation:
            turn.add(event)
            if turn.ids and not turn.finished.reason:
                generation.cancel()
        assert (turn.text, turn.finished.reason) == ("a", v1.FINISH_REASON_CANCELLED)
        assert len(fake.asked) == 2


@BOTH
def test_what_was_deleted_unheard_is_deleted(kind: Any) -> None:
    gone = refuses(CODE.NOT_FOUND, "DELETED")
    busy = refuses(CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_s=0.01)
    with Fake(says(v1.ListModelsResponse()), breaks(), gone, busy, gone) as fake:
        with kind(fake.address) as client:
            client.models()
            client.delete_session("s")
            with pytest.raises(aerie.Rejected, match="^no$"):
                client.delete_session("s")


@BOTH
def test_pages_are_turned(kind: Any) -> None:
    def page(*ids: str, token: str) -> v1.ListSessionsResponse:
        sessions = [v1.Session(session_id=it) for it in ids]
        return v1.ListSessionsResponse(sessions=sessions, next_page_token=token)

    pages = [page("a", "b", token="b"), page(token="c"), page("d", token="")]
    with Fake(*map(says, pages)) as fake, kind(fake.address) as client:
        assert [it.session_id for it in client.sessions()] == ["a", "b", "d"]
        asked = v1.ListSessionsRequest.FromString(fake.asked[1][1][0])
        assert asked.page_token == "b"


@BOTH
def test_files_go_in_pieces(kind: Any) -> None:
    file = random.Random(1).randbytes(600_000)

    def takes(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        pieces = [v1.ImportSessionRequest.FromString(it).chunk.data for it in requests]
        assert b"".join(pieces) == file and len(pieces) == 3
        yield v1.Session(session_id="s")

    gives = says(v1.Chunk(data=file[:1000]), v1.Chunk(data=file[1000:]))
    with Fake(gives, breaks(), takes) as fake, kind(fake.address) as client:
        assert client.export_session("s") == file
        assert client.import_session(file).session_id == "s"
        first, second = (v1.ImportSessionRequest.FromString(it[1][0]) for it in fake.asked[1:])
        assert first.start.request_id and first == second


@BOTH
def test_a_token_goes_with_every_call(kind: Any) -> None:
    with Fake(says(v1.ListModelsResponse()), says(accepted(), finished())) as fake:
        with kind(fake.address, token="secret") as client:
            client.models()
            assert fake.metadata["authorization"] == "Bearer secret"
            client.generate("x").read()
            assert fake.metadata["authorization"] == "Bearer secret"


def silent(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
    """Says a token, and then nothing until nobody listens."""
    yield accepted()
    yield delta(3, [1], "a")
    for _ in requests:
        pass


def test_a_wait_that_is_given_up_loses_no_token() -> None:
    async def hear(address: str) -> aerie.Turn:
        async with aerie.aio.Client(address) as client:
            turn = aerie.Turn()
            generation = client.generate("x", keep=True)
            for _ in range(2):
                turn.add(await anext(generation))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(generation), 0.05)
            async for event in generation:
                turn.add(event)
            return turn

    with Fake(silent, says(accepted(), delta(3, [1, 2], "ab"), finished())) as fake:
        turn = asyncio.run(hear(fake.address))
    assert (turn.ids, turn.text) == ([1, 2], "ab")


def test_a_wait_that_is_interrupted_loses_no_token() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    whole = says(accepted(), delta(3, [1, 2], "ab"), finished())
    with Fake(silent, whole) as fake, aerie.Client(fake.address) as client:
        turn = aerie.Turn()
        generation = client.generate("x", keep=True)
        for _ in range(2):
            turn.add(next(generation))
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            next(generation)
        signal.signal(signal.SIGALRM, before)
        for event in generation:
            turn.add(event)
    assert (turn.ids, turn.text) == ([1, 2], "ab")


@BOTH
def test_who_drops_a_generation_has_left_it(kind: Any) -> None:
    was_left = threading.Event()

    def listens(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        context.add_callback(was_left.set)
        yield from silent(requests, context)

    with Fake(listens) as fake, kind(fake.address) as client:
        generation = client.generate("x")
        next(generation)
        assert not was_left.is_set()
        del generation
        assert was_left.wait(10)


def test_threads_end_with_their_generations() -> None:
    whole = says(accepted(), finished())
    with Fake(*[whole] * 20) as fake, aerie.Client(fake.address) as client:
        counts = []
        for _ in range(20):
            client.generate("x").read()
            counts.append(threading.active_count())
    assert counts[-1] < counts[0] + 10, counts


def test_what_is_left_is_over() -> None:
    endless = says(accepted(), *(delta(3 + it, [it], "a") for it in range(10)), finished())
    with Fake(*[endless] * 2) as fake, aerie.Client(fake.address) as client:
        with client.generate("x") as generation:
            next(generation)
        assert list(generation) == []
        client.generate("x").close()
        assert len(fake.asked) == 1, "what nobody listened to was not begun"
