"""The file that says which background model, with which tools: what it can say, and how it is told what is wrong."""

import asyncio
import pathlib
import subprocess
import sys

import pytest

from tests.serve.background_rig import rig
from tml_jax.serve.background.settings import BackgroundSettings, build, read_settings

FULL = """
chat:
  base_url: http://127.0.0.1:8000/v1
  model: qwen3
  key_file: key.txt
  instructions: Answer in Dutch.
  pictures: true
documents: texts
mcp:
  - name: files
    command: [python, -m, files_server]
    env: {ROOT: /srv}
    harmless: [read_file]
  - {name: calendar, url: "https://calendar.example/mcp", headers: {Authorization: Bearer x}}
web_search: {url: "http://127.0.0.1:8888"}
limits: {deadline_s: 20, tool_calls: 4}
"""


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "background.yaml"
    path.write_text(text)
    (folder / "key.txt").write_text("sesame\n")
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "tea.txt").write_text("The tea is in the blue tin.")
    return path


def test_a_full_file_is_read_and_built(tmp_path: pathlib.Path) -> None:
    settings = read_settings(write(tmp_path, FULL))
    assert settings.chat is not None
    assert settings.chat.key_file == str(tmp_path / "key.txt")
    assert settings.documents == str(tmp_path / "texts")
    assert settings.mcp[0].command == ("python", "-m", "files_server")
    assert (settings.mcp[0].env, settings.mcp[1].harmless) == ({"ROOT": "/srv"}, ())
    assert (settings.limits.deadline_s, settings.limits.tool_calls, settings.limits.tasks) == (20.0, 4, 16)
    assert {"calculate", "search_documents", "web_search"} <= build(settings).tools().keys()


@pytest.mark.parametrize("text", ["", "{}", '{"limits": {"answer": 100}}'])
def test_a_file_may_say_little(tmp_path: pathlib.Path, text: str) -> None:
    settings = read_settings(write(tmp_path, text))
    assert settings.chat is None
    assert build(settings).tools() == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("chat: [", "are no YAML: "),
        ("- chat", "the file must be a mapping of names to values."),
        ("documets: x", "documets is not known: do you mean documents?"),
        ("colour: red", "colour is not known: there are chat, documents, mcp, web_search, python, limits."),
        ("chat: {base_url: x}", "chat.model is missing."),
        ("chat: {base_url: x, model: 3}", "chat.model must be text, but is 3."),
        ("limits: {deadline_s: soon}", "limits.deadline_s must be a number, but is 'soon'."),
        ("limits: {tool_calls: 2.5}", "limits.tool_calls must be a whole number, but is 2.5."),
        ("limits: {tasks: true}", "limits.tasks must be a whole number, but is True."),
        ("limits: {deadline_s: 0}", "limits: deadline_s must be more than 0."),
        ("mcp: {name: x}", "mcp must be a list."),
        ("chat: {base_url: x, model: y}\nmcp: [{name: x}]", "mcp[0]: The MCP server x needs a command or a url"),
        ("chat: {base_url: x, model: y}\nmcp: [{name: x, command: ls}]", "mcp[0].command must be a list."),
        ("chat: {base_url: x, model: y}\nmcp: [{name: x, url: u}, {name: x, url: v}]", "have the same name."),
        ("mcp: [{name: x, url: u}]", "are tools of a chat model: say which, under chat."),
        ("python: {}", "are tools of a chat model: say which, under chat."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"background\.yaml") as error:
        read_settings(write(tmp_path, text))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("chat: {base_url: x, model: y, key_file: none.txt}", "none.txt cannot be read"),
        ("chat: {base_url: x, model: y, key_env: TML_NO_SUCH_KEY}", "The variable TML_NO_SUCH_KEY, which chat.key_env"),
        ("documents: nowhere", "There is no folder of documents"),
    ],
)
def test_what_it_names_must_be_there(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    settings = read_settings(write(tmp_path, text))
    with pytest.raises(ValueError, match=reason):
        build(settings)
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


def test_the_embedded_model_answers_from_the_documents(tmp_path: pathlib.Path) -> None:
    settings = read_settings(write(tmp_path, "documents: texts"))

    async def scenario() -> list[str]:
        async with asyncio.timeout(60), rig(build(settings)) as conversation:
            for question in ("where is the tea", "what is twelve times seven", "who are you"):
                conversation.tell(heard=f" {question}")
                conversation.delegate()
                before = len(conversation.said)
                await conversation.until(lambda before=before: len(conversation.said) > before)  # type: ignore[misc]
                for _ in range(90):
                    conversation.tell()
            return [text for _, text in conversation.said]

    assert asyncio.run(scenario()) == ["The tea is in the blue tin.", "eighty four", "i do not know"]
    assert BackgroundSettings().python is None, "no code is run unless it is asked for"


def test_serve_says_what_is_wrong_with_the_file(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "chat: {base_url: x}")
    done = subprocess.run(
        [sys.executable, "-m", "launch.serve", f"--background={path}", "--port=0"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"launch.serve: {path}: chat.model is missing."
