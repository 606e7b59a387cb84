"""Why a session is refused or ended, where that is no fault of what its client sent (`intake.BadInputError`)."""


class OverloadedError(RuntimeError):
    """The server cannot keep up with what the session's model says."""


class JournalError(RuntimeError):
    """The session's journal cannot be written."""


class GoneError(RuntimeError):
    """The client that opened the session has gone."""


class DrainedError(RuntimeError):
    """The server is going down."""


class BusyError(RuntimeError):
    """The server's steps take too long for one more session."""


class LimitError(RuntimeError):
    """The session has sent as much as it may."""


class TimeLimitError(RuntimeError):
    """The session has lasted, or been idle, as long as it may; or its first message did not come."""


class MovedError(RuntimeError):
    """The session is to be resumed on another server."""


class TakenOverError(RuntimeError):
    """Another connection has taken the session over."""


class UnknownSessionError(LookupError):
    """No session can be resumed with this token."""

    def __init__(self) -> None:
        super().__init__(
            "There is no session to be resumed with this token: it has ended, its time to be resumed is over, too many "
            "others waited, or it never was."
        )


class HeldElsewhereError(RuntimeError):
    """Another process runs the session."""

    def __init__(self) -> None:
        super().__init__("Another server runs this session: resume it there, or here in a while.")


class NotHereError(RuntimeError):
    """The session is kept, but not so that this server can go on with it."""


class ToldTooLongAgoError(LookupError):
    """A resumed session would have to tell again what it keeps no more."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"The session cannot tell again what followed its response {sequence}: it is too long ago.")
