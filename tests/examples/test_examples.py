"""The three workflows, as their users run them: against a small fake model that says what can be foreseen, and the
shipped model, which watches a drawn scene of a voice that it never heard.
"""

import asyncio
import pathlib
import re
import sys

import av
import numpy as np
import pytest
import soundfile

from tests.serve.conftest import bursts
from tests.serve.fakes import fake_bundle
from tests.test_repo import ROOT, imports
from tml_jax.checkpoint.store import open_model
from tml_jax.data import scenarios
from tml_jax.data.config import Acoustics, Behaviour, DataConfig
from tml_jax.data.director import Director
from tml_jax.data.pipeline import open_bank
from tml_jax.data.timeline import Conversation, Frames, user_sound
from tml_jax.data.voices import Cast
from tml_jax.serve import subprocess_server
from tml_jax.serve.server import Server, ServerSettings
from tml_jax.streams import sound
from tml_jax.wire.journal import read_journal

MODEL, BANK = "checkpoints/inkling_tiny", "checkpoints/speech_bank"
EXAMPLES = ("coach", "copilot", "roleplay")
QUIET_ROOM = Acoustics(pitch_share=0, pace_share=0, level=(-22, -18), noise_share=0, room_share=0, telephone_share=0)


async def example(name: str, address: str, *arguments: object, typed: str = "") -> str:
    """What an example prints, in a process of its own."""
    return await printed(ROOT, "-m", f"examples.{name}", f"--server={address}", *map(str, arguments), typed=typed)


async def sample(folder: pathlib.Path, address: str) -> str:
    """What the sample of our own client in docs/doors.md prints."""
    section = (ROOT / "docs" / "doors.md").read_text().partition("## Our own client, gRPC")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    return await printed(folder, "-c", code.replace("127.0.0.1:50051", address))


async def printed(folder: pathlib.Path, *arguments: str, typed: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, error = await process.communicate(typed.encode())
    assert process.returncode == 0, error.decode()
    return out.decode()


def told(folder: pathlib.Path, kind: str) -> list[list[tuple[float, str]]]:
    """(seconds, text) of each session's events of this kind, as the server's journals have them."""
    journals = [read_journal(path) for path in sorted(folder.iterdir())]
    return [[(e["t"], e["text"]) for e in events if e["type"] == kind] for events in journals]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_stands_on_the_client(name: str) -> None:
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 100
    ours = {module for module in imports(path) if module.startswith(("tml_jax", "launch"))}
    public = ("tml_jax.client", "tml_jax.wire.events", "tml_jax.streams.number_words", "launch.cli", "launch.reach")
    assert all(module.startswith(public) for module in ours), ours


def test_what_the_examples_tell_a_model_it_reads(tmp_path: pathlib.Path) -> None:
    spoken, chat, journals = tmp_path / "you.wav", tmp_path / "chat.txt", tmp_path / "journals"
    noise = bursts(3.0, seed=1)
    sound.write_sound(spoken, noise.mono(), noise.sample_rate)
    chat.write_text("0.4:seven up\n2.0:eight up\n")

    async def scenario() -> tuple[str, ...]:
        settings = ServerSettings(slots=5, journal_dir=journals, faster_than_real_time=True)
        server = Server(fake_bundle(tmp_path), settings)
        address = f"127.0.0.1:{await server.start()}"
        try:
            return await asyncio.gather(
                example(
                    "coach",
                    address,
                    f"--wav={spoken}",
                    "--fastest_s=1.5",
                    "--correction=five please",
                    f"--out={tmp_path / 'coach.wav'}",
                ),
                example("copilot", address, f"--wav={spoken}", "--noreal_time", f"--chat={chat}"),
                example("copilot", address, f"--wav={spoken}", "--chat=-", typed="nine all\n"),
                example("roleplay", address, f"--wav={spoken}", "--noreal_time", "--persona=be a pirate"),
                sample(tmp_path, address),
            )
        finally:
            await server.stop(0.0)

    coach, copilot, live, _, own = asyncio.run(asyncio.wait_for(scenario(), 120))
    # This model says a number after each burst of noise, a second apart; and of what it is told the first word.
    assert re.search(r"coach: \w+\n.*correction: five please\n(.*\n)*.*coach: five\n", coach), coach
    assert re.search("^ *0[.]. s  .*seven", copilot, re.MULTILINE) and "eight" in copilot, copilot
    assert "nine" in live
    said = [[text for _, text in session] for session in told(journals, "instructions")]
    assert ["be a pirate"] in said and ["You are a coach. Count every repetition aloud."] in said
    assert re.search("^model: +one\n(.*\n)*model: +two$", own, re.MULTILINE), own
    assert np.abs(soundfile.read(tmp_path / "reply.wav")[0]).max() > 0.01
    both, _ = soundfile.read(tmp_path / "coach.wav")
    assert (np.abs(both).max(axis=0) > 0.01).all(), "the user on the left, the coach on the right"


def test_a_mistake_is_a_sentence_of_the_example() -> None:
    async def scenario() -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "examples.coach", cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        return process.returncode, (await process.communicate())[1].decode()

    assert asyncio.run(scenario())[1] == "examples.coach: Nobody is there: give --wav, --mic or --video.\n"


def draw_set(folder: pathlib.Path, count: int) -> tuple[list[str], list[float]]:
    """A user whom the model never heard asks for a count, and somebody moves; flags that show it, and when it ends."""
    spec, bank = open_model(MODEL)[0].stream, open_bank(BANK)
    habits = Behaviour(repetition=(1.0, 1.7), repetitions=(count, count), hesitation_share=0.0)
    config = DataConfig(bank=str(bank.path), seed=0, acoustics=QUIET_ROOM, behaviour=habits)
    cast, rng = Cast(config, bank, "heldout"), np.random.default_rng(0)
    able = [speaker for speaker in cast.speakers if speaker.family("repetitions")]
    director = Director(rng, config, spec, cast, able[int(rng.integers(len(able)))])
    director.limit = np.inf
    scenarios.count(director)
    director.pause()
    director.limit = director.now
    scenarios.film(director)
    drawn = Conversation(director.limit, tuple(director.events), True, "set", tuple(director.expectations))
    sound.write_sound(folder / "user.wav", user_sound(drawn, spec), spec.sample_rate)
    film = next(drawn.of(Frames))
    with av.open(str(folder / "set.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=int(film.fps), options={"crf": "10"})
        stream.height, stream.width = film.frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in film.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    (ends,) = [one["times"] for one in drawn.expectations if one["kind"] == "count"]
    return [f"--wav={folder / 'user.wav'}", f"--video={folder / 'set.mp4'}", "--noreal_time"], ends


def spoken(out: str, who: str) -> dict[str, float]:
    """What was said, and at which second."""
    found = re.findall(rf"^ *(\S+) s  {who}(\w+)$", out, re.MULTILINE)
    return {word: float(seconds) for seconds, word in found}


def test_the_shipped_model_at_all_three(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flags, ends = draw_set(tmp_path, 3)
    chat, highlights, journals = tmp_path / "chat.txt", tmp_path / "highlights.txt", tmp_path / "journals"
    chat.write_text("1:hi\n6:great\n")

    async def scenario(address: str) -> tuple[str, ...]:
        return await asyncio.gather(
            example("coach", address, *flags, "--fastest_s=2.1"),
            example("copilot", address, *flags, f"--chat={chat}", f"--highlights={highlights}"),
            # At the pace of time, so that what it does about a gesture comes before the end.
            example("roleplay", address, *flags, "--real_time", "--direction=the player waved"),
        )

    arguments = ["--faster_than_real_time", "--slots=3", f"--journal_dir={journals}"]
    with subprocess_server.run(MODEL, arguments) as address:
        coach, _, roleplay = asyncio.run(asyncio.wait_for(scenario(address), 300))
    counted = spoken(coach, "coach: ")
    assert list(counted)[-3:] == ["one", "two", "three"]
    assert np.allclose([counted[word] for word in ("one", "two", "three")], ends, atol=0.6), "at the end of each"
    assert coach.index("correction: slow down") < coach.index("three"), "in the middle of the set"
    moments = re.findall(r"^(\S+): (\w+)$", highlights.read_text(), re.MULTILINE)
    assert [word for _, word in moments][-3:] == ["one", "two", "three"]
    assert list(spoken(roleplay, r"Ghost \(sees it\): ")) == ["one", "two", "three"]
    assert [text for _, text in max(told(journals, "text"))] == ["hi", "great"]
    directed = [t for session in told(journals, "instructions") for t, text in session if text == "the player waved"]
    assert len(directed) == 1 and ends[0] < directed[0]
