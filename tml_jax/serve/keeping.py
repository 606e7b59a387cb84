"""Whose a session on disk is, and which model it is held with: asked before another process goes on with it."""

import asyncio
import hashlib
import hmac
import pathlib
import re

from tml_jax.serve import session_log
from tml_jax.serve.bundle import difference
from tml_jax.serve.config import SessionConfig
from tml_jax.serve.engine import Engine
from tml_jax.serve.errors import JournalError, NotHereError, UnknownSessionError
from tml_jax.serve.session_log import Kept, SessionLog


def keep(
    sessions: pathlib.Path, session_id: str, token: str, config: SessionConfig, engine: Engine, snapshot_turns: int
) -> SessionLog:
    """Begins to keep a new session among others, for who has its token.

    Raises:
      JournalError: it cannot be written.
    """
    assert engine.identity, "whose model nobody knows again"
    head = {"digest": _digest(token), "config": config.to_plain()}
    head |= {"name": engine.bundle.name, "identity": engine.identity}
    try:
        return SessionLog.create(sessions / session_id, head, snapshot_turns)
    except OSError as error:
        raise JournalError(f"What this session is kept in cannot be written: {error.strerror}.") from error


async def take_up(sessions: pathlib.Path, token: str, engine: Engine) -> tuple[SessionConfig, SessionLog, Kept]:
    """The session that this token opens, as another process has left it.

    Raises:
      UnknownSessionError: there is none.
      HeldElsewhereError: another process runs it.
      ServerFullError, BusyError, DrainedError: there would be no slot for it.
      NotHereError: it was kept by a server of another version, or with another model, or is damaged.
    """
    session_id, _, _ = token.partition(".")
    if not engine.parks or not re.fullmatch("[0-9a-f]{12}", session_id):
        raise UnknownSessionError
    head = await asyncio.to_thread(session_log.read_head, sessions / session_id)
    if not hmac.compare_digest(head["digest"], _digest(token)):
        raise UnknownSessionError
    session_log.check_format(head)
    if differs := difference(head["identity"], engine.identity):
        here = f"not with {engine.bundle.name} as this server has it: {differs}"
        raise NotHereError(f"This session is held with the model {head['name']}, and {here}.")
    engine.check_room()
    return SessionConfig.of_plain(head["config"]), *await session_log.take_up(sessions / session_id)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
