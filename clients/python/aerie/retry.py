"""When to ask again, and how long to wait before. Does no IO, and reads no clock."""

from dataclasses import dataclass
from typing import ClassVar

import grpc

from .errors import Error, Interrupted, Rejected

FIRST_S_MAX = 0.05
"""The first range of waits ends here."""
S_MAX = 5.0
"""No range ends later than this."""


@dataclass(frozen=True)
class Retry:
    """How long a client goes on asking."""

    patience: float | None = 30.0
    """Seconds without any progress; a server restarts in less than the default. `math.inf` has no end, and with None
    everything is asked once."""

    NEVER: ClassVar["Retry"]
    """Ask once."""


Retry.NEVER = Retry(patience=None)


class Backoff:
    """The waits between one attempt and the next, since there was progress.

    They are drawn from a range that doubles with each attempt, so that clients that were cut off together do not come
    back together; what the server asks for is the least.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._attempts = 0
        self._since: float | None = None

    def progressed(self) -> None:
        """Something was achieved: the next failure is a first one."""
        self._attempts, self._since = 0, None

    def wait(self, error: Error, now: float, unit: float) -> float | None:
        """How many seconds to wait after `error` before asking again.

        None if asking is of no use, or has been tried for long enough. `now` is in seconds, `unit` a random number
        from 0 to 1.
        """
        patience = self._retry.patience
        if patience is None or not may_help(error):
            return None
        if self._since is None:
            self._since = now
        range_s = min(FIRST_S_MAX * 2 ** min(self._attempts, 16), S_MAX)
        self._attempts += 1
        wait = (error.retry_after or 0.0) + range_s * unit
        return wait if now + wait < self._since + patience else None


def may_help(error: Error) -> bool:
    """Whether the same question may get another answer.

    Not where nobody ever answered: who waits for such a server wants to know at once.
    """
    if isinstance(error, Rejected):
        return error.retry_after is not None or error.code is grpc.StatusCode.UNAVAILABLE
    return isinstance(error, Interrupted)
