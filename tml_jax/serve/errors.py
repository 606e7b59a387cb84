"""Why a session is refused or ended, where that is no fault of what its client sent (`intake.BadInputError`)."""


class OverloadedError(RuntimeError):
    """The server cannot keep up with what the session's model says."""


class JournalError(RuntimeError):
    """The session's journal cannot be written."""


class GoneError(RuntimeError):
    """The client that opened the session has gone."""


class DrainedError(RuntimeError):
    """The server is going down."""
