"""The file of `launch.serve --background=FILE`: which background model, with which tools. YAML, so JSON too."""

import dataclasses
import difflib
import os
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from tml_jax.serve.background.backend import Backend
from tml_jax.serve.background.chat import Chat, ChatSettings
from tml_jax.serve.background.documents import Documents
from tml_jax.serve.background.embedded import Embedded, calculator_tool
from tml_jax.serve.background.mcp_tools import McpServer, McpSettings
from tml_jax.serve.background.mind import FixedTools, Limits, Mind, ToolSource
from tml_jax.serve.background.sandbox import Sandbox, SandboxSettings
from tml_jax.serve.background.web_search import WebSearch, WebSearchSettings


@dataclasses.dataclass(frozen=True)
class ChatFile:
    """`ChatSettings`, whose key is in a file or a variable of the environment, and not in this file."""

    base_url: str
    model: str
    key_file: str = ""
    key_env: str = ""
    instructions: str = ""
    pictures: bool = False
    max_tokens: int = 1000


@dataclasses.dataclass(frozen=True)
class BackgroundSettings:
    """A server's background model.

    Attributes:
      chat: a chat model; without one it is the embedded calculator, clock and search.
      documents: a folder to search in, relative to the file.
      mcp: servers of tools. web_search: the same. python: code is run, in a sandbox. These three need `chat`.
      limits: of each task.
    """

    chat: ChatFile | None = None
    documents: str = ""
    mcp: tuple[McpSettings, ...] = ()
    web_search: WebSearchSettings | None = None
    python: SandboxSettings | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.chat is None and (self.mcp or self.web_search or self.python):
            raise ValueError("mcp, web_search and python are tools of a chat model: say which, under chat.")
        names = [server.name for server in self.mcp]
        if len(set(names)) < len(names):
            raise ValueError("Two of the MCP servers have the same name.")


def read_settings(path: pathlib.Path) -> BackgroundSettings:
    """The settings in a file; its relative paths are made relative to here.

    Raises:
      ValueError: in one sentence, what is wrong with it.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The background settings in {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The background settings in {path} are no YAML: {reason}.") from error
    try:
        settings = _read({} if given is None else given, BackgroundSettings, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    beside = path.parent
    if settings.documents:
        settings = dataclasses.replace(settings, documents=str(beside / settings.documents))
    if settings.chat is not None and settings.chat.key_file:
        chat = dataclasses.replace(settings.chat, key_file=str(beside / settings.chat.key_file))
        settings = dataclasses.replace(settings, chat=chat)
    return settings


def build(settings: BackgroundSettings) -> Mind:
    """The background model that the settings describe.

    Raises:
      ValueError: a file or folder that they name is not there.
      MissingExtraError: a library is not installed that they need.
    """
    documents = Documents(pathlib.Path(settings.documents)) if settings.documents else None
    limits = settings.limits
    if settings.chat is None:
        return Mind(Embedded(documents), limits=limits)
    backend: Backend = Chat(_chat(settings.chat))
    sources: list[ToolSource] = [FixedTools((calculator_tool(), *([documents.tool()] if documents else [])))]
    sources += [McpServer(server, limits.tool_deadline_s) for server in settings.mcp]
    if settings.web_search is not None:
        sources.append(WebSearch(settings.web_search, limits.tool_deadline_s))
    if settings.python is not None:
        sources.append(Sandbox(settings.python, limits.tool_output))
    return Mind(backend, sources, limits)


def _chat(given: ChatFile) -> ChatSettings:
    fields = {f.name: getattr(given, f.name) for f in dataclasses.fields(ChatSettings) if f.name != "key"}
    return ChatSettings(key=_key(given), **fields)


def _key(given: ChatFile) -> str:
    if given.key_env:
        if not (key := os.environ.get(given.key_env, "").strip()):
            raise ValueError(f"The variable {given.key_env}, which chat.key_env names, is not set.")
        return key
    if not given.key_file:
        return "none"
    try:
        key = pathlib.Path(given.key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The key in {given.key_file} cannot be read: {error}.") from error
    if not key:
        raise ValueError(f"There is no key in {given.key_file}.")
    return key


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _read(given: Any, kind: Any, where: str) -> Any:
    """What a file gives, as a value of `kind`: dataclasses, lists, mappings of text, and plain values."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if given is None:
            return None
        return _read(given, next(one for one in inside if one is not types.NoneType), where)
    if origin is tuple:
        if not isinstance(given, list):
            raise ValueError(f"{where} must be a list.")
        return tuple(_read(one, inside[0], f"{where}[{number}]") for number, one in enumerate(given))
    if origin is Mapping:
        if not isinstance(given, dict):
            raise ValueError(f"{where} must be a mapping.")
        return {str(key): _read(value, inside[1], f"{where}.{key}") for key, value in given.items()}
    if dataclasses.is_dataclass(kind):
        return _read_fields(given, kind, where)
    wanted = (int, float) if kind is float else kind
    if not isinstance(given, wanted) or (isinstance(given, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_KINDS[kind]}, but is {given!r}.")
    return kind(given)


def _read_fields(given: Any, kind: Any, where: str) -> Any:
    if not isinstance(given, dict):
        raise ValueError(f"{where or 'the file'} must be a mapping of names to values.")
    hints, fields = typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            hint = f"do you mean {near[0]}?" if near else f"there are {', '.join(fields)}."
            raise ValueError(f"{f'{where}.' if where else ''}{name} is not known: {hint}")
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in given:
            raise ValueError(f"{f'{where}.' if where else ''}{name} is missing.")
    values = {name: _read(value, hints[name], f"{where}.{name}" if where else name) for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error
