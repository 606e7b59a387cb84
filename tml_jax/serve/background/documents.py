"""Search in a folder of texts, with SQLite's full-text index (FTS5) in memory; read once, at the start."""

import asyncio
import collections
import dataclasses
import pathlib
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence

from tml_jax.serve.background.backend import Tool

SUFFIXES = (".txt", ".md", ".rst")
MAX_FILE, MAX_ALL, MAX_FILES = 2 << 20, 128 << 20, 20_000
MAX_PASSAGE = 1200
_IDLE = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be by can could did do does for from had has have how i in is it its me my of on or our "
        "please say tell that the there these they this those to was we were what when where which who whose why "
        "will with would you your about",
    )
)


@dataclasses.dataclass(frozen=True)
class Passage:
    """A paragraph of a file; `path` is relative to the folder."""

    path: str
    text: str


def content_words(text: str) -> list[str]:
    """The words of a question that say what it is about."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _IDLE]


class Documents:
    """A folder's .txt, .md and .rst files, by paragraphs. Thread-safe.

    Attributes:
      folder: where they are. files: how many were read.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Reads them.

        Raises:
          ValueError: there is no such folder, or it holds more than is searched.
        """
        if not folder.is_dir():
            raise ValueError(f"There is no folder of documents {str(folder)!r}.")
        self.folder, self.files, self._lock = folder.resolve(), 0, threading.Lock()
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        self._index.execute("CREATE VIRTUAL TABLE passages USING fts5(path, text, tokenize = 'porter unicode61')")
        for path, text in self._texts():
            self.files += 1
            rows = [(path, passage) for passage in _passages(text)]
            self._index.executemany("INSERT INTO passages VALUES (?, ?)", rows)

    def _texts(self) -> Iterator[tuple[str, str]]:
        read = 0
        for path in sorted(self.folder.rglob("*")):
            # A link may lead out of the folder.
            inside = path.suffix.lower() in SUFFIXES and path.is_file() and path.resolve().is_relative_to(self.folder)
            if not inside or path.stat().st_size > MAX_FILE:
                continue
            read += path.stat().st_size
            if read > MAX_ALL or self.files >= MAX_FILES:
                most = f"{MAX_FILES} files or {MAX_ALL >> 20} MiB"
                raise ValueError(
                    f"The documents in {str(self.folder)!r} are more than {most}: choose a smaller folder."
                )
            yield str(path.relative_to(self.folder)), path.read_text(encoding="utf-8", errors="replace")

    def search(self, query: str, count: int = 5) -> list[Passage]:
        """The passages that fit best, best first."""
        words = content_words(query)[:32]
        if not words:
            return []
        wanted = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            rows = self._index.execute(
                "SELECT path, text FROM passages WHERE passages MATCH ? ORDER BY bm25(passages, 2.0, 1.0) LIMIT ?",
                (wanted, count),
            ).fetchall()
        return [Passage(*row) for row in rows]

    def sentence(self, question: str) -> str | None:
        """The sentence that has most of the question's words; None where three quarters of them stand nowhere near."""
        words = set(map(_stem, content_words(question)))
        best, most = None, 0.0
        for passage in self.search(question):
            around = collections.Counter(map(_stem, content_words(f"{passage.path} {passage.text}")))
            if len(words & around.keys()) < 0.75 * len(words):
                continue
            for sentence in re.split(r"(?<=[.!?])\s+|\n", passage.text):
                own = words & set(map(_stem, content_words(sentence)))
                score = sum(1 / around[word] for word in own)  # what stands here and nowhere near tells most
                if score > most and not sentence.startswith("#"):
                    best, most = " ".join(sentence.split()), score
        return best

    def tool(self) -> Tool:
        """The search, for a backend."""

        async def run(arguments: dict[str, object]) -> str:
            found = await asyncio.to_thread(self.search, str(arguments["query"]))
            return "\n\n".join(f"{one.path}: {one.text}" for one in found) or "Nothing was found."

        parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
        return Tool("search_documents", "Searches the local documents for passages.", parameters, run)


def _stem(word: str) -> str:
    """Enough of a stem to compare a question's words with a sentence's."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)]
    return word


def _passages(text: str) -> Sequence[str]:
    """Paragraphs, each with the heading above it, long ones in pieces."""
    pieces, heading = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip()
        if paragraph.startswith("#") and "\n" not in paragraph:
            heading = paragraph + "\n"
            continue
        paragraph = heading + paragraph
        while paragraph:
            end = len(paragraph)
            if end > MAX_PASSAGE:
                end = paragraph.rfind(" ", MAX_PASSAGE // 2, MAX_PASSAGE) + 1 or MAX_PASSAGE
            pieces.append(paragraph[:end].strip())
            paragraph = paragraph[end:].strip()
    return pieces
