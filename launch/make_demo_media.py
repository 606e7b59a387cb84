"""Makes the demo's conversation, ``examples/demo.wav`` and ``demo.mp4``, from a held-out voice of the speech bank.

python -m launch.make_demo_media --out=examples
"""

import pathlib
import sys

import av
import numpy as np
from absl import app, flags

from tml_jax.data import scenarios, scenes
from tml_jax.data.config import DataConfig
from tml_jax.data.director import Director
from tml_jax.data.pipeline import open_bank
from tml_jax.data.timeline import Conversation, Frames, user_sound
from tml_jax.data.voices import Cast, Speaker
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.number_words import from_words
from tml_jax.streams.sound import write_sound

OUT = flags.DEFINE_string("out", "examples", "Folder for demo.wav and demo.mp4.")
BANK = flags.DEFINE_string("bank", "checkpoints/speech_bank", "The speech bank.")
VOICE = flags.DEFINE_string("voice", "flite/rms", "Who speaks.")
SEED = flags.DEFINE_integer("seed", 8, "Of everything that is drawn.")
SCALE = 8  # a 40x40 scene is filmed this many times larger


def _say(director: Director, text: str, wait_s: float, hesitate: bool = False) -> float:
    clips = [clip for family in director.speaker.families() for clip in director.speaker.family(family)]
    clip = next((clip for clip in clips if clip.text == text), None)
    if clip is None:
        raise ValueError(f"{director.speaker.name} has no clip of {text!r}.")
    end = director.user(clip, director.now, hesitate=hesitate)
    director.now = end + wait_s
    return end


def conversation(bank_path: str, voice: str, seed: int) -> Conversation:
    """The scripted conversation; only the user's side matters."""
    bank, spec, config = open_bank(bank_path), StreamSpec(), DataConfig(bank=bank_path, seed=seed)
    clips = bank.select(voice=voice, split="heldout")
    if not clips:
        raise ValueError(f"{voice!r} is no held-out voice of the speech bank {bank_path}.")
    rng = np.random.default_rng(seed)
    director = Director(rng, config, spec, Cast(config, bank, "heldout"), Speaker(voice, clips))
    director.voice = type(director.voice)(1.0, 1.0, -20.0, None)
    speaker = director.speaker
    director.now = 1.0
    _say(director, "hello", 2.2)
    start = _say(director, "count the repetitions", 0.0) + 1.4
    motion = scenes.draw_repetitions(rng, 4, start, (1.6, 1.7), 60.0)
    director.motions.append(motion)
    director.limit = director.now = motion.ends[-1] + 1.5
    scenarios.film(director)  # up to here; then the camera is off
    repeat = next(c.text for c in speaker.family("repeat") if len(c.text.split()) == 5)
    _say(director, repeat, 4.0, hesitate=True)
    long = max((c.text for c in speaker.family("count_to")), key=lambda t: from_words(t.split()[-1]))
    _say(director, long, 4.2)
    _say(director, "stop", 2.5)
    timer = min((c.text for c in speaker.family("timer")), key=lambda t: from_words(t.split()[3]))
    _say(director, timer, from_words(timer.split()[3]) + 2.5)
    product = next(c.text for c in speaker.family("delegate") if "times" in c.text)
    _say(director, product, 5.0)
    director.limit = director.now
    return Conversation(director.limit, tuple(director.events))


def write_video(path: pathlib.Path, frames: np.ndarray, fps: int) -> None:
    """Writes frames uint8 [n, H, W, 3] as H.264."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "20", "threads": "1"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    try:
        made = conversation(BANK.value, VOICE.value, SEED.value)
    except ValueError as error:
        sys.exit(f"launch.make_demo_media: {error}")
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    spec = StreamSpec()
    write_sound(out / "demo.wav", user_sound(made, spec), spec.sample_rate)
    film = next(made.of(Frames))
    large = film.frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    write_video(out / "demo.mp4", large, round(film.fps))
    print(f"{made.duration_s:.1f} s: {out / 'demo.wav'}, {out / 'demo.mp4'}")


if __name__ == "__main__":
    app.run(main)
