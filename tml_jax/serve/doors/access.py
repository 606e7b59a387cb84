"""Who may enter a server: API keys, the single-use tokens that pages get for them, and how much each key may use."""

import collections
import contextlib
import dataclasses
import hashlib
import hmac
import pathlib
import secrets
import time
from collections.abc import Iterator, Sequence

from tml_jax.serve import watch

TOKEN_S = 60.0  # a page connects at once, or asks again
MAX_TOKENS = 1024  # that wait to be used
DAY_S = 24 * 3600.0


class AccessError(Exception):
    """A client may not enter; the message is one sentence for its user.

    Attributes:
      code: for programs, as OpenAI's protocols name it.
    """

    def __init__(self, code: str, sentence: str) -> None:
        """Makes an error."""
        super().__init__(sentence)
        self.code = code


class QuotaError(RuntimeError):
    """A key has used what it may."""


@dataclasses.dataclass(frozen=True)
class Quota:
    """What one key may use: `sessions` at once, `minutes` of sessions in 24 hours; 0 is any number."""

    sessions: int = 0
    minutes: float = 0.0


def read_keys(path: pathlib.Path) -> tuple[str, ...]:
    """The API keys of a file, one a line.

    Raises:
      ValueError: it cannot be read, or holds none.
    """
    try:
        keys = tuple(filter(None, map(str.strip, path.read_text().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The API keys in {path} cannot be read: {error}.") from error
    if not keys:
        raise ValueError(f"There is no API key in {path}: write one a line.")
    return keys


class Access:
    """The keys of a server, and who uses them. Used on the event loop.

    Attributes:
      asked: whether a key is asked for at all; without one everybody is the owner ``""``, whom no quota holds.
    """

    def __init__(self, keys: Sequence[str] = (), quota: Quota = Quota()) -> None:
        """Makes the access of a server."""
        self._keys, self._quota = tuple(key.encode() for key in keys), quota
        self._tokens: collections.OrderedDict[str, tuple[float, str]] = collections.OrderedDict()
        self._live: collections.Counter[str] = collections.Counter()
        self._used: dict[str, collections.deque[tuple[float, float]]] = {}
        self._since: dict[object, tuple[str, float]] = {}
        self.asked = bool(keys)

    def owner(self, authorization: str, api_key: str = "") -> str:
        """Whose key came: a name that tells nothing of the key.

        Args:
          authorization: ``Bearer KEY``, or empty.
          api_key: the key itself, where it came in another way.

        Raises:
          AccessError: none came, or an unknown one.
        """
        if not self.asked:
            return ""
        scheme, _, key = authorization.partition(" ")
        given = (key.strip() if scheme.lower() == "bearer" else api_key).encode()
        if not given:
            raise AccessError("missing_authorization", "Send an API key as Authorization: Bearer KEY.")
        # Every key is compared, so that the time tells nothing.
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise AccessError("invalid_api_key", "This API key is not known here.")
        return hashlib.sha256(given).hexdigest()[:16]

    def issue(self, owner: str) -> str:
        """A token for one connection of `owner`, within `TOKEN_S`."""
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.monotonic() + TOKEN_S, owner
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return token

    def redeem(self, token: str) -> str:
        """Whose token it is; it opens nothing more.

        Raises:
          AccessError: it was used, is too old, or never was.
        """
        until, owner = self._tokens.pop(token, (0.0, ""))
        if time.monotonic() > until:
            raise AccessError("invalid_token", "This token was used, or is too old: ask for another one.")
        return owner

    @contextlib.contextmanager
    def session(self, owner: str) -> Iterator[None]:
        """A session of `owner`, as long as the context is.

        Raises:
          QuotaError: its key has no more sessions or minutes left.
        """
        if not owner:
            yield
            return
        with watch.refusals():
            self.check(owner)
        one, now = object(), time.monotonic()
        self._live[owner] += 1
        self._since[one] = owner, now
        try:
            yield
        finally:
            self._live[owner] -= 1
            del self._since[one]
            self._used.setdefault(owner, collections.deque()).append((time.monotonic(), time.monotonic() - now))

    def check(self, owner: str) -> None:
        """Raises QuotaError where `owner` has no more sessions or minutes left."""
        if not owner:
            return
        quota, now = self._quota, time.monotonic()
        if quota.sessions and self._live[owner] >= quota.sessions:
            raise QuotaError(f"This key may have {quota.sessions} sessions at once: end one of them first.")
        ended = self._used.get(owner, collections.deque())
        while ended and ended[0][0] < now - DAY_S:
            ended.popleft()
        seconds = sum(length for _, length in ended)
        seconds += sum(now - begun for who, begun in self._since.values() if who == owner)
        if quota.minutes and seconds >= quota.minutes * 60:
            raise QuotaError(f"This key may use {quota.minutes:g} minutes in 24 hours, and has used them.")
