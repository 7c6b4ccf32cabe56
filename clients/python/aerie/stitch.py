"""One stream of tokens out of several answers to the same question. Does no IO.

A server that is asked again repeats its answer: the same tokens at the same positions, the same text in sum. But several
tokens may come as one delta here and as two there, so what was passed on is counted in tokens and in bytes, not in
deltas.
"""

import grpc

from .errors import Contradiction
from .v1 import Delta


class Stitch:
    """Passes on each token and each byte of text once."""

    def __init__(self, mark: int, *, repeats_all: bool) -> None:
        """For answers that begin at `mark`: each time if an answer `repeats_all`, or else at first."""
        self.mark = mark
        """Where an answer begins that is asked for again."""
        self._repeats_all = repeats_all
        # Tokens, and bytes of text, passed on since the mark.
        self._ids: list[int] = []
        self._text_bytes = 0
        # Bytes of text of the current answer.
        self._heard_bytes = 0

    def again(self) -> None:
        """Another answer begins."""
        self._heard_bytes = 0

    def push(self, delta: Delta) -> Delta | None:
        """What is new of `delta`; None if all of it was passed on before.

        Raises `Contradiction` if it says something else than before, or leaves something out.
        """
        ids, position = list(delta.ids), delta.position
        if ids:
            at = position - self.mark
            known = self._ids[at : at + len(ids)] if 0 <= at else []
            if not 0 <= at <= len(self._ids) or known != ids[: len(known)]:
                raise _contradiction(position)
            ids, position = ids[len(known) :], position + len(known)
            if not self._repeats_all and not known:
                # All before has been heard: if need be, the next answer begins here.
                self.mark, self._text_bytes, self._heard_bytes = position, 0, 0
                self._ids.clear()
            self._ids += ids
        text = self._new_text(delta)
        return Delta(text=text, ids=ids, position=position) if ids or text else None

    def _new_text(self, delta: Delta) -> str:
        text = delta.text.encode()
        known_bytes = min(max(self._text_bytes - self._heard_bytes, 0), len(text))
        self._heard_bytes += len(text)
        self._text_bytes = max(self._text_bytes, self._heard_bytes)
        try:
            return text[known_bytes:].decode()
        except UnicodeDecodeError:
            raise _contradiction(delta.position) from None


def _contradiction(position: int) -> Contradiction:
    message = f"the server now says something else at token {position} than it did before"
    return Contradiction(message, grpc.StatusCode.INTERNAL, position=position)
