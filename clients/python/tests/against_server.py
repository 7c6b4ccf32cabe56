#!/usr/bin/env python3
"""Our Python client with a real server that is killed while it speaks: both clients, every call, every token once.

Usage: against_server.py ADDRESS PROMPT [--certificate FILE] [--client-certificate FILE KEY] [--token TOKEN]

ADDRESS is that of a server with one model. A line `kill` on stdout asks for a `kill -9` of the server and a new one in its
place; what comes of it is waited for as clients do. Needs the package in PYTHONPATH. `cargo test` runs this.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
from waiting import Waiting

import aerie
from aerie.course import Course

TOKENS = 60
# Of a generation that is killed: long enough to be still running then.
LONG_TOKENS = 6000
# How many tokens of it are heard before.
HEARD_TOKENS = 40
REFUSALS = 200
# The same tokens every time, but not one and the same token as an untrained model would say.
SAMPLING = aerie.Sampling(frequency_penalty=0.05)


breaks: list[aerie.Error] = []
"""What streams were asked for again after."""


def count_breaks() -> None:
    wait = Course.wait

    def counted(course: Course, error: aerie.Error) -> float:
        breaks.append(error)
        return wait(course, error)

    setattr(Course, "wait", counted)


def refused(call: Callable[[], object]) -> aerie.Error:
    try:
        call()
    except aerie.Rejected as error:
        return error
    raise AssertionError("it was not refused")


def kill() -> None:
    print("kill", flush=True)


def calls_do_what_they_say(client: Any, prompt: str) -> None:
    [model] = client.models()
    assert model.vocab, model
    options = aerie.Options(model=model.name, max_tokens=TOKENS, sampling=SAMPLING, keep=True)
    turn = client.generate(prompt, **options).read()
    id, position = turn.accepted.session_id, turn.finished.position
    assert len(turn.ids) == TOKENS and turn.finished.reason == aerie.v1.FINISH_REASON_LENGTH
    assert client.session(id).position == position
    attached = client.attach(id).read()
    assert attached.attached.position == position and attached.text == prompt + turn.text
    client.name_session(id, "trunk")
    device = client.session(id).device
    assert client.move_session(id, device).device == device
    fork = client.fork_session("trunk", position=position - 20)
    options = aerie.Options(session_id=fork.session_id, max_tokens=20, sampling=SAMPLING)
    again = client.generate("", **options).read()
    assert again.ids == turn.ids[-20:]
    assert client.rewind_session(id, position - 30).position == position - 30
    options = aerie.Options(session_id=id, max_tokens=30, sampling=SAMPLING)
    again = client.generate("", expected_position=position - 30, **options).read()
    assert again.ids == turn.ids[-30:]
    file = client.export_session(id)
    copy = client.import_session(file, session_id=aerie.random_id())
    assert copy.position == position
    made = {id, fork.session_id, copy.session_id}
    assert made == {it.session_id for it in client.sessions()}
    for it in made:
        client.delete_session(it)
    assert not list(client.sessions())


def refusals_say_why(client: Any, prompt: str) -> None:
    for _ in range(REFUSALS):
        gone = refused(client.generate("", session_id=aerie.random_id()).read)
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "NEVER_EXISTED"), gone.code
    turn = client.generate(prompt, keep=True, max_tokens=2).read()
    id, position = turn.accepted.session_id, turn.finished.position
    stale = refused(client.generate("", session_id=id, expected_position=1).read)
    assert stale.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (stale.reason, stale.position) == ("STALE_POSITION", position)
    refused(lambda: client.delete_session(id, expected_position=1))
    client.delete_session(id)
    assert refused(lambda: client.session(id)).reason == "DELETED"


def a_generation_is_cancelled(client: Any, prompt: str) -> None:
    generation = client.generate(prompt, max_tokens=60_000)
    turn = aerie.Turn()
    for event in generation:
        turn.add(event)
        if turn.ids:
            generation.cancel()
    assert turn.finished.reason == aerie.v1.FINISH_REASON_CANCELLED and len(turn.ids) < 60_000


def kill_9_loses_no_token_and_doubles_none(client: Any, prompt: str) -> None:
    """One generation of a session that is kept, one that is not, one session that is followed, and calls."""
    options = aerie.Options(max_tokens=LONG_TOKENS, sampling=SAMPLING)
    expected = client.generate(prompt, **options).read()
    assert len(expected.ids) == LONG_TOKENS and 10 < len(set(expected.ids)), expected.finished
    begins = expected.finished.position - LONG_TOKENS
    for keep in (True, False):
        turn = aerie.Turn()
        was_killed = False
        for event in client.generate(prompt, keep=keep, **options):
            if isinstance(event, aerie.Delta) and event.ids:
                assert event.position == begins + len(turn.ids), "tokens are numbered by position"
            turn.add(event)
            if HEARD_TOKENS <= len(turn.ids) and not was_killed:
                was_killed = True
                kill()
        assert was_killed and turn.ids == expected.ids and turn.text == expected.text
    assert breaks, "it was not killed amid a stream"
    [session] = client.sessions()
    follow = client.attach(session.session_id)
    kill()
    turn = follow.read()
    assert turn.text == prompt + expected.text
    kill()
    client.delete_session(session.session_id)
    assert not list(client.sessions())


def the_command_streams(address: str, prompt: str, flags: list[str]) -> None:
    command = [sys.executable, "-m", "aerie", prompt, "--server", address, "--tokens", "8", *flags]
    first = subprocess.run([*command, "--keep"], check=True, capture_output=True, text=True)
    session = first.stderr.strip().removeprefix("session ")
    more = [*command[:3], "", *command[4:], "--session", session]
    subprocess.run(more, check=True, capture_output=True, text=True)
    wrong = subprocess.run([*more, "--session", "x"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: session_id"), wrong.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("prompt")
    parser.add_argument("--certificate")
    parser.add_argument("--client-certificate", nargs=2)
    parser.add_argument("--token")
    args = parser.parse_args()
    shown = {"client_certificate": args.client_certificate, "token": args.token}
    count_breaks()
    for kind in (aerie.Client, Waiting):
        with kind(args.address, certificate=args.certificate, **shown) as client:
            calls_do_what_they_say(client, args.prompt)
            refusals_say_why(client, args.prompt)
            a_generation_is_cancelled(client, args.prompt)
            breaks.clear()
            kill_9_loses_no_token_and_doubles_none(client, args.prompt)
    the_command_streams(args.address, args.prompt, sys.argv[3:])


if __name__ == "__main__":
    main()
