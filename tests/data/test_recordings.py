"""Recordings: a quarter is for tests only, by the SHA-1 of what is said; the rest becomes talk in the bank."""

import hashlib
import pathlib

import numpy as np
import pytest
import soundfile

from tml_jax.data import recordings, synthesis
from tml_jax.data.speech_bank import SpeechBank, Word

LINES = {f"talk-{i}": f"The line number {i} is busy." for i in range(12)}
OTHERS = {
    "digits/7": "seven",
    "letters/a": "a b",
    "hello": "Hello.",
    "polite": "Good morning.",
    "beep": "[a beep tone]",
    "long": "This one goes on.",
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "ann"
    rng = np.random.default_rng(0)
    for name in LINES | OTHERS:
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 13 if name == "long" else 1
        soundfile.write(path, 0.1 * rng.standard_normal(8000 * seconds), 8000)
    lines = [f"{name}: {text}" for name, text in (LINES | OTHERS | {"missing": "There is no sound."}).items()]
    (folder / recordings.TRANSCRIPTS).write_text("\n".join(["; a comment", "", *lines]))
    (folder / recordings.LICENCE).write_text("CC0 (Ann)\n")
    return folder


def _for_tests(transcript: str) -> bool:
    return hashlib.sha1(transcript.encode()).hexdigest()[0] in "0123"


def test_reads_what_has_both_sound_and_transcript(folder: pathlib.Path) -> None:
    licence, found = recordings.read_folder(folder)
    assert licence == "CC0 (Ann)"
    spoken = LINES | OTHERS
    assert {r.name: r.transcript for r in found} == {name: spoken[name] for name in spoken if name != "beep"}
    assert next(r for r in found if r.name == "talk-7").text == "the line number seven is busy"


def test_the_checksum_of_the_transcript_decides_what_is_for_tests(folder: pathlib.Path) -> None:
    _, found = recordings.read_folder(folder)
    assert {r.test_only for r in found} == {True, False}
    assert all(r.test_only == _for_tests(r.transcript) for r in found)
    # SHA-1 of "abc" is a9993e36..., of the pangram 2fd4e1c6... (RFC 3174, FIPS 180).
    assert not recordings.is_test_only("abc")
    assert recordings.is_test_only("The quick brown fox jumps over the lazy dog")


def test_a_line_that_a_test_says_is_for_tests_whoever_writes_it(folder: pathlib.Path) -> None:
    said = next(line for name, line in LINES.items() if name != "talk-1" and _for_tests(line))
    other = next(end for end in ("!", "...", " !", "!!", "..", ",") if not _for_tests(said[:-1] + end))
    lines = (folder / recordings.TRANSCRIPTS).read_text().replace("talk-1:", "was-1:")
    (folder / recordings.TRANSCRIPTS).write_text(f"{lines}\ntalk-1: {said[:-1]}{other}\n")
    _, found = recordings.read_folder(folder)
    assert next(r for r in found if r.name == "talk-1").test_only


def test_numbers_letters_and_commands_are_no_talk() -> None:
    for text in ("seven", "a b", "hello", "good morning", "please stop", "five two o clock", "activated"):
        assert not recordings.is_talk(text)
    assert recordings.is_talk("please enter your password")


@pytest.mark.parametrize("missing", [recordings.TRANSCRIPTS, recordings.LICENCE])
def test_a_folder_that_lacks_something_says_what(folder: pathlib.Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        recordings.read_folder(folder)


def test_transcripts_of_other_sounds_are_an_error(folder: pathlib.Path) -> None:
    (folder / recordings.TRANSCRIPTS).write_text("elsewhere: Not here.")
    with pytest.raises(FileNotFoundError, match="names no sound file"):
        recordings.read_folder(folder)


def test_the_bank_gets_the_training_talk_alone(folder, tmp_path, monkeypatch) -> None:
    def aligner(samples: np.ndarray, words: list[str]) -> list[Word] | None:
        return None if "three" in words else [Word(word, 0.1 * i, 0.1 * i + 0.1) for i, word in enumerate(words)]

    monkeypatch.setattr(synthesis, "load_aligner", lambda: aligner)
    builder = synthesis.BankBuilder(tmp_path / "bank", seed=0, minutes_per_voice=1.0)
    builder.add_recordings(folder)
    bank = SpeechBank.load(tmp_path / "bank")
    voice = bank.voices["recorded/ann"]
    assert (voice.split, voice.licence) == ("train", "CC0 (Ann)")
    expected = {text for text in LINES.values() if not _for_tests(text)}
    assert expected and {c.text for c in bank.clips} == {recordings.spoken_text(text) for text in expected}
    assert all(c.kind == "talk" for c in bank.clips)
    assert all(bool(c.words) == ("three" not in c.text) for c in bank.clips)
