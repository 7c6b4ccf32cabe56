"""What can go wrong between a client and its server.

Arguments that no server could make sense of are `ValueError`s, and files that cannot be read `OSError`s, as elsewhere.
"""

import grpc


class Error(Exception):
    """A call did not succeed; the classes below say how."""

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        position: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """The kind of the error in gRPC's terms."""
        self.reason = reason
        """The kind of a refusal, more exactly, such as `STALE_POSITION`; may be empty."""
        self.position = position
        """Where the session stands, if that is what the error is about."""
        self.retry_after = retry_after
        """Seconds after which trying again may help, as far as the server told."""


class Unreachable(Error):
    """Nobody has ever answered at this address, or none that may be trusted."""


class Interrupted(Error):
    """The connection was lost while the call was running, and for longer than the client is patient."""


class Rejected(Error):
    """The server refused the call, or could not go on with it."""


class Contradiction(Error):
    """A server that was asked again gave another answer than before; `position` says where."""


class UnexpectedAnswer(Error):
    """The server answered with something other than what was asked for."""
