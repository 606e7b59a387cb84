"""A small corpus of recorded conversations, made of simulated ones: their truth is known to the sample."""

import json

import av
import numpy as np
import soundfile

from tml_jax.data.timeline import AssistantSpeech, Frames, UserSpeech, user_sound


def words_of(conversation):
    """(speaker, word, start, end) in seconds of the conversation."""
    return sorted(
        (
            (
                "assistant" if isinstance(event, AssistantSpeech) else "user",
                w.text,
                event.start_s + w.start_s,
                event.start_s + w.end_s,
            )
            for event in conversation.events
            if isinstance(event, UserSpeech | AssistantSpeech)
            for w in event.words or ()
        ),
        key=lambda word: word[2],
    )


def channels_of(conversation, spec):
    """What a call recorder would keep: float32 [samples, 2], the user and the assistant."""
    user = user_sound(conversation, spec)
    assistant = np.zeros(len(user), np.float32)
    for event in conversation.of(AssistantSpeech):
        start = round(event.start_s * spec.sample_rate)
        clip = event.audio[: len(user) - start]
        assistant[start : start + len(clip)] += clip
    return np.stack([user, assistant], 1)


def write_json(path, words):
    fields = ("speaker", "word", "start", "end")
    path.write_text(json.dumps({"words": [dict(zip(fields, word, strict=True)) for word in words]}))


def _stamp(seconds):
    return f"{int(seconds // 3600):02d}:{int(seconds // 60) % 60:02d}:{seconds % 60:06.3f}"


def write_vtt(path, words):
    """A cue a word, and for two words of one speaker in a row a cue with a time inside."""
    cues, rest = [], list(words)
    while rest:
        speaker, text, start, end = rest.pop(0)
        if rest and rest[0][0] == speaker and abs(rest[0][2] - end) < 0.02:
            _, more, middle, end = rest.pop(0)
            text = f"{text.capitalize()}, <{_stamp(middle)}><c>{more}</c>"
        cues.append(f"{_stamp(start)} --> {_stamp(end)} align:start\n<v {speaker.capitalize()}>{text}")
    path.write_text("WEBVTT\n\nNOTE two lines\nof a note\n\n1\n" + "\n\n".join(cues) + "\n")


def write_call(path, conversation, spec):
    """The sound of a call, in the format that the name ends with."""
    kinds = {
        ".wav": {"subtype": "FLOAT"},
        ".flac": {"subtype": "PCM_24"},
        ".opus": {"format": "OGG", "subtype": "OPUS"},
    }
    soundfile.write(path, np.clip(channels_of(conversation, spec), -1, 1), spec.sample_rate, **kinds[path.suffix])


def write_film(path, conversation, spec):
    """The user's camera and microphone; an .mkv keeps every pixel."""
    (shots,) = conversation.of(Frames)
    rate = round(shots.fps)
    with av.open(str(path), "w") as container:
        codec, pixels = ("ffv1", "yuv444p") if path.suffix == ".mkv" else ("mpeg4", "yuv420p")
        picture, audio = container.add_stream(codec, rate=rate), container.add_stream("aac", rate=spec.sample_rate)
        picture.height, picture.width, picture.pix_fmt = *shots.frames.shape[1:3], pixels
        audio.layout = "mono"
        for i, shot in enumerate(shots.frames):
            frame = av.VideoFrame.from_ndarray(shot, format="rgb24")
            frame.pts = i
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        samples = user_sound(conversation, spec)
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = spec.sample_rate, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())


def make(folder, simulator, spec, numbers=range(4)):
    """A corpus: calls as wav, flac and opus with either transcript, a film, and a file that is none."""
    folder.mkdir(parents=True)
    for i, suffix in zip(numbers, (".wav", ".flac", ".opus", ".wav"), strict=False):
        conversation = simulator.conversation(i, "command")
        path = folder / f"day-{i % 2}" / f"call-{i}{suffix}"
        path.parent.mkdir(exist_ok=True)
        write_call(path, conversation, spec)
        write = write_json if i % 2 else write_vtt
        write(path.with_suffix(".json" if i % 2 else ".vtt"), words_of(conversation))
    film = simulator.conversation(9, "watch")
    write_film(folder / "film.mp4", film, spec)
    write_json(folder / "film.json", [word for word in words_of(film) if word[0] == "user"])
    (folder / "broken.flac").write_bytes(b"fLaC, but no more")
    return folder
