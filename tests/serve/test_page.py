"""The page in a real Chromium: a spoken conversation with the shipped model, refusals, phones."""

import contextlib
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.serve.chromium import FAKE_CAMERA, at, chromium, until
from tests.serve.conftest import start_web
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.serve.bundle import load_bundle
from tml_jax.serve.server import ServerSettings
from tml_jax.wire.behaviour import Behaviour, text_of
from tml_jax.wire.journal import read_journal

pytestmark = pytest.mark.browser
RATE = 16_000
GATE = 0.0018  # of full scale, root mean square: where LiveKit's client begins to take sound for speech


@contextlib.contextmanager
def microphone(folder: pathlib.Path, *clips: tuple[float, str]) -> Any:
    """Flags for a Chromium that hears these (seconds of silence before, words)."""
    bank = SpeechBank.load("checkpoints/speech_bank")
    pieces = []
    for silence_s, text in clips:
        pieces.append(np.zeros(round(silence_s * RATE), np.float32))
        if text:
            pieces.append(bank.audio(bank.select(split="heldout", voice="kokoro/bm_george", text=text)[0]))
    soundfile.write(folder / "microphone.wav", np.concatenate(pieces), RATE, subtype="PCM_16")
    yield [*FAKE_CAMERA, f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}%noloop"]


async def saved(page: Any, button: str) -> bytes:
    async with page.expect_download() as download:
        await page.click(button)
    return pathlib.Path(await (await download.value).path()).read_bytes()


def test_a_spoken_conversation(run, tmp_path: pathlib.Path) -> None:
    journals = tmp_path / "journals"
    settings = ServerSettings(slots=1, http_address="127.0.0.1:0", journal_dir=journals)

    async def scenario(flags: list[str]) -> tuple[bytes, bytes, str, str]:
        async with (
            start_web(load_bundle("checkpoints/inkling_tiny"), settings) as server,
            chromium(flags, viewport={"width": 1240, "height": 1010}) as page,
        ):
            await page.goto(at(server))
            await until(page, "!!document.querySelector('#start:not([disabled])')")
            await page.click("#camera")
            await page.keyboard.press("s")
            said = (
                "[...document.querySelectorAll('[data-who=model] span')].some((line) => /six/.test(line.textContent))"
            )
            await until(page, said)
            await page.wait_for_timeout(1500)
            await page.fill("#text", "hello")
            await page.click("#send")
            await page.wait_for_timeout(2500)
            await page.screenshot(path=tmp_path / "page.png")
            await page.click("#start")
            await until(page, "!!document.querySelector('#save-wav:not([disabled])')")
            assert not await page.is_visible("#trouble"), await page.inner_text("#trouble")
            spoken = await page.inner_text("#transcript")
            wav, jsonl = await saved(page, "#save-wav"), await saved(page, "#save-jsonl")
            files = [
                {"name": "a.jsonl", "mimeType": "application/jsonl", "buffer": jsonl},
                {"name": "a.wav", "mimeType": "audio/wav", "buffer": wav},
            ]
            await page.set_input_files("#open", files)
            await until(page, "document.querySelector('#status').textContent.startsWith('Recording')")
            replayed = await page.inner_text("#transcript")
            await page.click("#play")
            await until(page, "Number(document.querySelector('#seek').value) > 1")
            return wav, jsonl, spoken, replayed

    with microphone(tmp_path, (1.0, "repeat six four please"), (8.0, "")) as flags:
        wav, jsonl, spoken, replayed = run(scenario(flags))
    assert replayed == spoken
    (tmp_path / "page.jsonl").write_bytes(jsonl)
    kept = read_journal(tmp_path / "page.jsonl")
    (journal,) = journals.iterdir()
    assert plain(kept) == plain(read_journal(journal)), "the page saw what the server's journal says"
    print(text_of(kept, "heard"), "|", text_of(kept, "word"))
    assert "repeat" in text_of(kept, "heard")
    assert "six" in text_of(kept, "word")
    assert [event["text"] for event in kept if event["type"] == "text"] == ["hello"]
    assert sum(event.get("count", 0) for event in kept if event["type"] == "frame") > 5, "the camera was seen"
    sound, rate = soundfile.read(io.BytesIO(wav))
    assert rate == RATE
    period = RATE // 10
    levels = np.sqrt(np.mean(sound[: len(sound) // period * period].reshape(-1, period, 2) ** 2, axis=1))
    user, model = levels.T
    heard = np.flatnonzero(model > GATE)
    assert (user > GATE).sum() > 8, "the microphone was heard"
    assert len(heard) >= 4, "the page has played what the model said"
    assert heard[0] > np.flatnonzero(user > GATE)[0], "and not before the user spoke"
    first_s = Behaviour.from_events(kept).sound[0][0]
    assert first_s - 0.2 < heard[0] / 10 < first_s + 4, "when the journal says so, and a little later"


def plain(kept: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Without wall times and levels, which lose bits on the wire; texts have no fixed place among the lines."""
    lines = [
        tuple((key, value) for key, value in sorted(event.items()) if key not in ("level", "started_unix_s", "t"))
        for event in kept
        if event["type"] not in ("text", "instructions", "end")
    ]
    return lines


def test_without_a_microphone_the_page_says_so_and_goes_on_in_writing(serving_web, run) -> None:
    async def scenario() -> tuple[str, str]:
        async with serving_web() as server, chromium() as page:  # which has no microphone
            await page.goto(at(server))
            await page.click("#start")
            await page.wait_for_selector("#trouble:not([hidden])")
            sentence = await page.inner_text("#trouble p")
            await page.click("#deaf")
            await until(page, "!document.querySelector('#text').disabled")
            await page.fill("#text", "seven please")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("[data-who=model]")
            return sentence, await page.inner_text("[data-who=model] span")

    sentence, said = run(scenario())
    assert sentence in (
        "There is no microphone.",
        "The microphone may not be used: allow it for this page in the browser's settings.",
    )
    assert said == "seven"


def test_keys_and_refusals_are_told_in_words(serving_web, run) -> None:
    async def scenario() -> list[str]:
        found = []
        async with serving_web(slots=1, api_keys=["s3cret"]) as server, chromium(FAKE_CAMERA) as page:
            await page.goto(at(server))
            for key in ("wrong", "s3cret"):
                await page.fill("#key", key)
                await page.keyboard.press("Enter")
                if key == "wrong":
                    await page.wait_for_selector("#trouble:not([hidden])")
                    found.append(await page.inner_text("#trouble p"))
            await until(page, "document.querySelector('#model').textContent === 'fake'")
            await page.click("#start")
            await until(page, "document.querySelector('#status').dataset.state === 'live'")
            other = await page.context.new_page()
            await other.goto(at(server))
            await other.fill("#key", "s3cret")
            await other.keyboard.press("Enter")
            await other.click("#start")
            await other.wait_for_selector("#trouble:not([hidden])")
            found.append(await other.inner_text("#trouble p"))
            server.server.sessions.end_all(RuntimeError("a fault"))
            await page.wait_for_selector("#trouble:not([hidden])")
            found.append(await page.inner_text("#trouble p"))
            return found

    wrong, full, failed = run(scenario())
    assert wrong == "This API key is not known here."
    assert full == "All 1 sessions of this server are taken: try again when one has ended."
    assert failed.startswith("This session failed inside the server (RuntimeError)")


def test_a_broken_connection_is_made_again_and_nothing_is_lost(bundle, run, tmp_path: pathlib.Path) -> None:
    journals = tmp_path / "journals"
    settings = ServerSettings(slots=1, http_address="127.0.0.1:0", journal_dir=journals)

    async def scenario() -> tuple[bytes, list[str]]:
        async with start_web(bundle, settings) as server, chromium(FAKE_CAMERA) as page:
            await page.goto(at(server))
            await page.click("#start")
            await page.wait_for_selector("#status[data-state=live]")
            await page.wait_for_timeout(1500)
            states = []
            for _ in range(2):
                for connection in tuple(server.server.web._server.server_state.connections):  # type: ignore[union-attr]
                    connection.transport.abort()
                await page.wait_for_selector("#status[data-state=busy]")
                states.append(await page.inner_text("#status"))
                await page.wait_for_selector("#status[data-state=live]")
                await page.wait_for_timeout(1000)
            await page.fill("#text", "seven please")
            await page.click("#send")
            await page.wait_for_timeout(1000)
            await page.click("#start")
            await page.wait_for_selector("#save-wav:not([disabled])")
            assert not await page.is_visible("#trouble"), await page.inner_text("#trouble")
            return await saved(page, "#save-jsonl"), states

    jsonl, states = run(scenario())
    assert states == ["Connecting again"] * 2
    (tmp_path / "page.jsonl").write_bytes(jsonl)
    kept = read_journal(tmp_path / "page.jsonl")
    (journal,) = journals.iterdir()
    assert plain(kept) == plain(read_journal(journal))
    assert sum(event["type"] == "session" for event in kept) == 1
    assert "seven" in text_of(kept, "word")
    assert kept[-1]["type"] == "end"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_night(serving_web, run, tmp_path: pathlib.Path, scheme: str) -> None:
    async def scenario() -> tuple[int, str, list[str]]:
        phone = {
            "viewport": {"width": 360, "height": 740},
            "color_scheme": scheme,
            "has_touch": True,
            "is_mobile": True,
        }
        async with serving_web() as server, chromium(FAKE_CAMERA, **phone) as page:
            await page.goto(at(server))
            await page.tap("#start")
            await until(page, "document.querySelector('#status').dataset.state === 'live'")
            await page.wait_for_timeout(1500)
            await page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            small = await page.evaluate(
                """[...document.querySelectorAll('.talk button, .talk input, .talk select')]
                .filter((one) => one.getBoundingClientRect().height < 44).map((one) => one.id)"""
            )
            return wide, ground, small

    wide, ground, small = run(scenario())
    assert wide <= 360, "nothing is wider than the screen"
    assert not small, "fingers find every button"
    assert (int(json.loads(ground.replace("rgb(", "[").replace(")", "]"))[0]) > 128) == (scheme == "light")
