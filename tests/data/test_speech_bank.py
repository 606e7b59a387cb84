"""The speech bank keeps sample offsets through Opus, filters its clips, and names what is wrong with a bad one."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from tml_jax.data import phrases, speech_bank
from tml_jax.data.speech_bank import SAMPLE_RATE, NewClip, SpeechBank, Voice, Word

VOICES = (
    Voice("bells/high", "bells", "train", "CC0", "bells-high.opus"),
    Voice("bells/low", "bells", "heldout", "CC0", "bells-low.opus"),
)


def _sound(seed: int, seconds: float) -> np.ndarray:
    """Noise with a speech-like spectrum and slow envelope: its autocorrelation has one sharp peak."""
    rng = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE)
    noise = np.convolve(rng.normal(size=count), np.hanning(12), mode="same")
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(count) / SAMPLE_RATE)
    sound = noise * envelope
    return (0.4 * sound / np.abs(sound).max()).astype(np.float32)


def _clips(seed: int) -> list[NewClip]:
    kinds: tuple[speech_bank.ClipKind, ...] = ("command", "word", "filler")
    return [
        NewClip(f"{i:03d}", text, kinds[i], (Word(text.split()[0], 0.01, 0.2),), _sound(seed + i, 0.3 + 0.171 * i))
        for i, text in enumerate(("count to ten", "ten", "um"))
    ]


@pytest.fixture
def bank_path(tmp_path: pathlib.Path) -> pathlib.Path:
    entries = {voice.name: speech_bank.write_voice(tmp_path, voice, _clips(10 * i)) for i, voice in enumerate(VOICES)}
    speech_bank.write_index(tmp_path, entries)
    return tmp_path


def test_round_trip_keeps_everything_but_the_samples(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    assert list(bank.voices.values()) == list(VOICES)
    for voice_number, voice in enumerate(VOICES):
        written = _clips(10 * voice_number)
        read = bank.select(voice=voice.name)
        assert [(c.id, c.text, c.kind, c.words) for c in read] == [
            (f"{voice.name}/{w.id}", w.text, w.kind, w.words) for w in written
        ]
        assert all((c.engine, c.split, c.file) == (voice.engine, voice.split, voice.file) for c in read)
        assert [c.num_samples for c in read] == [len(w.audio) for w in written]


def test_opus_keeps_offsets_to_the_sample(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    for clip, written in zip(bank.select(voice="bells/low"), _clips(10), strict=True):
        audio = bank.audio(clip)
        assert audio.shape == written.audio.shape and audio.dtype == np.float32
        correlation = np.correlate(audio, written.audio, mode="full")
        assert np.argmax(correlation) - (len(audio) - 1) == 0
        similarity = correlation.max() / np.linalg.norm(audio) / np.linalg.norm(written.audio)
        assert similarity > 0.8


def test_gaps_between_clips_are_silent(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    clips = bank.select(voice="bells/high")
    for before, after in itertools.pairwise(clips):
        assert after.start_sample - before.start_sample - before.num_samples == speech_bank.GAP_SAMPLES


def test_filters_combine_and_take_collections(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    assert {c.voice for c in bank.select(split="heldout")} == {"bells/low"}
    assert {c.kind for c in bank.select(kind=("word", "filler"))} == {"word", "filler"}
    assert [c.text for c in bank.select(split="train", text="ten")] == ["ten"]
    assert bank.select(engine="gongs") == []


def test_audio_is_a_copy(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    first = bank.audio(bank.clips[0])
    first[:] = 0
    assert np.abs(bank.audio(bank.clips[0])).max() > 0.1


def test_missing_bank_says_how_to_make_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no speech bank at .*launch\.prepare_data"):
        SpeechBank.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"version": 99, "sample_rate": 16000, "voices": {}})])
def test_corrupt_index_says_what_it_is(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / speech_bank.INDEX_NAME).write_text(content)
    with pytest.raises(ValueError, match="isn't a speech bank index of version 1"):
        SpeechBank.load(tmp_path)


def test_bad_voice_files_are_named(bank_path: pathlib.Path) -> None:
    bank = SpeechBank.load(bank_path)
    clip = bank.select(voice="bells/high")[-1]
    sound = bank_path / clip.file
    speech_bank.write_voice(bank_path, VOICES[0], _clips(0)[:1])
    with pytest.raises(ValueError, match=f"clip {clip.id} ends at"):
        bank.audio(clip)
    sound.write_bytes(b"not Ogg at all")
    with pytest.raises(ValueError, match=r"bells-high\.opus can't be decoded"):
        SpeechBank.load(bank_path).audio(clip)
    sound.unlink()
    with pytest.raises(FileNotFoundError, match=r"bells-high\.opus is missing"):
        SpeechBank.load(bank_path).audio(clip)


def test_export_keeps_what_matters_most_within_the_limit(bank_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    held_out_size = (bank_path / "bells-low.opus").stat().st_size
    small = tmp_path / "small"
    assert [v.name for v in speech_bank.export(bank_path, small, held_out_size + 6000)] == ["bells/low"]
    exported, bank = SpeechBank.load(small), SpeechBank.load(bank_path)
    assert exported.clips == bank.select(split="heldout")
    np.testing.assert_array_equal(exported.audio(exported.clips[1]), bank.audio(exported.clips[1]))
    assert "| bells/low |" in (small / "README.md").read_text()
    assert sum(f.stat().st_size for f in small.iterdir()) <= held_out_size + 6000
    assert {v.name for v in speech_bank.export(bank_path, tmp_path / "whole", 2**20)} == {v.name for v in VOICES}


def test_a_plan_is_seeded_grows_in_place_and_covers_the_families() -> None:
    plan = phrases.user_phrases(7, 70)
    assert phrases.user_phrases(7, 200)[:70] == plan
    assert phrases.user_phrases(8, 70) != plan
    assert sum(u.text in ("stop", "please stop", "be quiet", "that is enough") for u in plan[:24]) >= 3
    starts = ("repeat", "count to", "count down from", "tell me when", "say beep every", "what is", "what time is it")
    for start in (*starts, "count the repetitions", "hello", "good morning", "how are you", "um"):
        assert any(u.text.startswith(start) for u in plan[:24]), start
    assert {u.text for u in plan if u.kind == "word"} == set(phrases.UNITS[:10])
    assert all(u.text == phrases.transcript(u.spoken) for u in plan)


def test_the_assistant_has_every_word_at_every_speed() -> None:
    said = {(u.text, u.speed) for u in phrases.assistant_phrases()}
    assert said >= {(word, speed) for word in phrases.ASSISTANT_WORDS for speed in phrases.ASSISTANT_SPEEDS}
    assert all(u.kind == "assistant" for u in phrases.assistant_phrases())


def test_talk_leaves_the_bytes_of_a_voice_as_they_are(bank_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    voice, before = VOICES[1], SpeechBank.load(bank_path)
    bytes_before = (bank_path / voice.file).read_bytes()
    talk = [NewClip("t000", "did you see anna", "talk", (), _sound(99, 0.7))]
    entry = speech_bank.write_voice(bank_path, voice, talk)
    entries = json.loads((bank_path / speech_bank.INDEX_NAME).read_text())["voices"]
    entries[voice.name]["talk"] = entry["talk"]
    speech_bank.write_index(bank_path, entries)
    bank = SpeechBank.load(bank_path)
    assert (bank_path / voice.file).read_bytes() == bytes_before
    assert [c for c in bank.clips if c.kind != "talk"] == before.clips
    (clip,) = bank.select(kind="talk")
    assert (clip.id, clip.text, clip.words, clip.split) == ("bells/low/t000", "did you see anna", (), "heldout")
    assert clip.file == voice.file_of("talk") and len(bank.audio(clip)) == len(talk[0].audio)
    speech_bank.export(bank_path, tmp_path / "copy", 2**20)
    copy = SpeechBank.load(tmp_path / "copy")
    np.testing.assert_array_equal(copy.audio(copy.select(kind="talk")[0]), bank.audio(clip))
    assert "| bells/low | heldout | 3 | 1 | 1 | 1 | CC0 |" in (tmp_path / "copy" / "README.md").read_text()
