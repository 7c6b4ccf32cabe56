"""One stream of tokens out of several answers."""

import random

import pytest

from aerie import Contradiction
from aerie.stitch import Stitch
from aerie.v1 import Delta

FROM = 7
SEEDS = 200


def deltas(rng: random.Random, answer: list[tuple[int, str]], start: int) -> list[Delta]:
    """The answer from token `start` on, in deltas that end anywhere, also between a token and its text."""
    made: list[Delta] = []
    is_cut = True
    for i, (id, text) in enumerate(answer[start:], start):
        if is_cut:
            made.append(Delta(position=FROM + i))
        made[-1].ids.append(id)
        if rng.random() < 0.5:
            made.append(Delta())
        made[-1].text += text
        is_cut = rng.random() < 0.5 or not made[-1].ids
    return made


@pytest.mark.parametrize("repeats_all", [True, False])
def test_every_token_and_byte_comes_once(repeats_all: bool) -> None:
    """However often a stream breaks, and wherever."""
    for seed in range(SEEDS):
        rng = random.Random(seed)
        texts = ["", "a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{SLIGHTLY SMILING FACE}b"]
        answer = [(rng.randrange(50), rng.choice(texts)) for _ in range(rng.randrange(1, 40))]
        stitch = Stitch(FROM, repeats_all=repeats_all)
        ids: list[int] = []
        text = ""
        for is_last in [False] * rng.randrange(6) + [True]:
            said = deltas(rng, answer, stitch.mark - FROM)
            stitch.again()
            for delta in said if is_last else said[: rng.randrange(len(said) + 1)]:
                new = stitch.push(delta)
                if new is not None:
                    assert not new.ids or new.position == FROM + len(ids), seed
                    ids += new.ids
                    text += new.text
        assert ids == [it[0] for it in answer], seed
        assert text == "".join(it[1] for it in answer), seed


def test_a_server_that_says_something_else_is_found_out() -> None:
    stitch = Stitch(FROM, repeats_all=True)
    stitch.push(Delta(position=7, ids=[1, 2, 3]))
    stitch.again()
    for position, ids in [(7, [1, 9]), (6, [1]), (12, [5])]:
        with pytest.raises(Contradiction) as caught:
            stitch.push(Delta(position=position, ids=ids))
        assert caught.value.position == position
    assert stitch.push(Delta(position=8, ids=[2, 3, 4])) == Delta(position=10, ids=[4])


def test_text_that_parts_within_a_character_is_found_out() -> None:
    stitch = Stitch(FROM, repeats_all=True)
    stitch.push(Delta(position=7, ids=[1], text="a"))
    stitch.again()
    with pytest.raises(Contradiction):
        stitch.push(Delta(position=7, ids=[1], text="\N{LATIN SMALL LETTER E WITH ACUTE}"))
