"""Web search through a SearXNG instance (https://docs.searxng.org), which must have `json` among its formats."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tml_jax.serve.background.backend import MissingExtraError, Tool

MAX_RESULTS = 5


@dataclasses.dataclass(frozen=True)
class WebSearchSettings:
    """Where the instance is; `language` as SearXNG writes it, "" for its own default."""

    url: str
    language: str = ""


class WebSearch:
    """A source of one tool, `web_search`."""

    def __init__(self, settings: WebSearchSettings, timeout_s: float) -> None:
        """Makes one.

        Raises:
          MissingExtraError: there is no `httpx2`.
        """
        try:
            import httpx2
        except ImportError:
            raise MissingExtraError("Web search") from None
        self._settings, self._timeout_s, self._httpx = settings, timeout_s, httpx2
        self._client: Any = None
        parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
        self.tools: Sequence[Tool] = (Tool("web_search", "Searches the web.", parameters, self._search),)

    async def start(self) -> None:
        """Makes the client; the instance is asked when something is searched for."""
        self._client = self._httpx.AsyncClient(timeout=self._timeout_s)

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _search(self, arguments: dict[str, Any]) -> str:
        query = {"q": str(arguments["query"])[:400], "format": "json"}
        query |= {"language": self._settings.language} if self._settings.language else {}
        reply = await self._client.get(f"{self._settings.url.rstrip('/')}/search", params=query)
        if reply.status_code == 403:
            return "Failed: the search engine does not answer in JSON: add json to search.formats in its settings."
        reply.raise_for_status()
        found = [
            f"{one.get('title', '')} ({one.get('url', '')}): {one.get('content', '')}"
            for one in reply.json().get("results", [])[:MAX_RESULTS]
        ]
        return "\n".join(found) or "Nothing was found."
