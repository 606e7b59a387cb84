"""Recorded timelines: what is read again equals what was kept, and two sounds alone can be scored."""

import json
import sys
import types

import numpy as np
import pytest
import soundfile

from tests.serve.fakes import SPEC, fake_bundle
from tml_jax.data.pipeline import open_bank
from tml_jax.data.timeline import Conversation, SpokenWord, UserSpeech
from tml_jax.eval import panel, recorded, targets
from tml_jax.eval.recorded import Chunk, Recorded, chunks_of, load, load_all, stretches, words_after
from tml_jax.eval.rollout import Rollout
from tml_jax.wire.behaviour import Behaviour
from tml_jax.wire.journal import AUDIBLE_DB

RATE = recorded.RATE
EXPECTED = (
    {"kind": "silent", "reason": "hesitation", "from": 0.5, "to": 0.9},
    {"kind": "answer", "after": 1.6, "words": ["five"]},
)


def noise(*spans, seconds=6.0, level=0.1):
    """White noise in those stretches, silence elsewhere."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    for start, end in spans:
        place = slice(round(start * RATE), round(end * RATE))
        samples[place] = level * np.random.default_rng(0).standard_normal(len(samples[place]))
    return samples


def talker(*spans, seconds=6.0):
    words = (SpokenWord("hello", 0.0, 0.6),)
    speech = UserSpeech(0.0, noise(*spans, seconds=seconds), words)
    return Conversation(seconds, (speech,), True, "command", EXPECTED)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The fake model, which says a digit when loud sound has ended."""
    bundle = fake_bundle(tmp_path_factory.mktemp("fake"))
    bundle.model.config = types.SimpleNamespace(stream=SPEC)
    return targets.Checkpoint(Rollout(bundle.model, bundle.params, bundle.tokenizer, 2))


def test_a_played_case_is_read_as_it_was_scored(checkpoint, tmp_path):
    users = [talker((0.4, 1.6)), talker((0.4, 1.6), (3.0, 4.0)), talker((2.0, 2.6))]
    cases = [targets.Case(f"smoke/command/{i}", "smoke", "command", user, i) for i, user in enumerate(users)]
    played = list(checkpoint.play(cases, sound=True))
    assert [len(one.behaviour().words) for one in played] == [1, 2, 1]
    for one in played:
        one.save(tmp_path)
    again = list(load_all(tmp_path))
    assert [one.name for one in again] == [case.name for case in cases]
    for one, other in zip(played, again, strict=True):
        assert np.array_equal(one.input, other.input) and np.array_equal(one.output, other.output)
        assert one.events == other.events and one.chunks == other.chunks
        assert (one.suite, one.category, one.duration_s) == (other.suite, other.category, other.duration_s)
        assert panel.judged(one) == panel.judged(other) != []


def test_the_sound_of_a_rollout_is_where_its_journal_says(checkpoint):
    """The journal is dated by the samples, which come later than the mel frames by the vocoder's delay."""
    case = targets.Case("a", "smoke", "command", talker((0.4, 1.6)))
    (one,) = checkpoint.play([case], sound=True)
    ((start, end),) = one.behaviour().sound
    assert 1.8 <= start < 2.0, "the user's sound ends at 1.6 s, and the answer plays a micro-turn later"
    blocks = np.square(one.output[: len(one.output) // 160 * 160]).reshape(-1, 160).mean(axis=1)
    loud = np.flatnonzero(blocks > 10 ** (AUDIBLE_DB / 10)) / 100
    assert loud[0] == pytest.approx(start, abs=0.0101) and loud[-1] <= end + 0.2
    (silent,) = checkpoint.play([case], sound=False)
    assert silent.output is None and silent.events == one.events


def test_draws_depend_on_the_case_and_not_on_those_beside_it(checkpoint):
    cases = [targets.Case(str(i), "smoke", "", talker((0.4, 1.6)), seed=i) for i in range(3)]
    alone = [next(checkpoint.play([case], sound=True)).output for case in cases]
    together = [one.output for one in checkpoint.play(cases, sound=True)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not np.array_equal(alone[0], alone[1])


def test_words_without_times_are_found_in_the_sound(tmp_path, monkeypatch):
    """Recordings of the assistant's voice, half a second and more apart; what was not said is not found."""
    bank, starts = open_bank("checkpoints/speech_bank"), [1.0, 3.0, 4.0]
    words = ["seven", "twelve", "nineteen"]
    sound = np.zeros(6 * RATE, np.float32)
    for word, start in zip(words, starts, strict=True):
        clip = bank.audio(bank.select(kind="assistant", text=word)[0])
        sound[round(start * RATE) :][: len(clip)] = clip
    Recorded("a", np.zeros_like(sound), sound, 6.0).save(tmp_path)

    def read(text):
        (tmp_path / "a" / "output.json").write_text(json.dumps({"text": text}))
        return load(tmp_path / "a").chunks

    found = read("Seven, twelve nineteen.")
    assert [chunk.text for chunk in found] == words
    np.testing.assert_allclose([chunk.start_s for chunk in found], starts, atol=0.1)
    assert read("") == ()
    assert [chunk.text for chunk in read("Seven - twelve… “nineteen”")] == words
    with pytest.raises(ValueError, match="were not found in the sound, one after the other"):
        read("Seven 12 nineteen")
    with pytest.raises(ValueError, match="neither a text nor chunks"):
        (tmp_path / "a" / "output.json").write_text("{}")
        load(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    recorded._aligner.cache_clear()
    with pytest.raises(ValueError, match=r"pocketsphinx is needed.*install it with"):
        read("seven")


def test_two_sounds_are_enough(tmp_path):
    folder = tmp_path / "talks" / "7"
    folder.mkdir(parents=True)
    soundfile.write(folder / "input.wav", np.repeat(noise((0.5, 1.0)), 3), 3 * RATE)
    soundfile.write(folder / "output.wav", noise((2.0, 2.5), (2.56, 3.0), (4.0, 4.4)), RATE)
    (case,) = load_all(tmp_path)
    assert (case.name, case.category, case.events, case.chunks) == ("talks/7", "talks", None, None)
    assert case.behaviour().sound == ((2.0, pytest.approx(3.0)), (4.0, pytest.approx(4.4)))
    assert case.behaviour().words == () and case.duration_s == 6.0 and len(case.input) == 6 * RATE


def test_nothing_is_made_up_about_words_that_nobody_wrote_down():
    count = {"kind": "count", "total": 2, "times": [1.0, 2.0], "until": 3.0}
    delegate = {"kind": "delegate", "after": 1.0, "query": "what"}
    sounds = {"input": noise(), "output": noise((1.8, 2.4)), "duration_s": 6.0}
    judged = panel.judged(Recorded("a", expectations=(*EXPECTED, count, delegate), **sounds))
    verdicts = {expected["kind"]: verdict for expected, verdict in judged}
    assert verdicts["silent"].good and verdicts["answer"].good and verdicts["answer"].words_right is None
    assert verdicts["delegate"] is None and "count" not in verdicts
    told = panel.judged(Recorded("a", expectations=EXPECTED, chunks=(Chunk("Five", 1.8, 2.4),), **sounds))
    assert dict((e["kind"], v.words_right) for e, v in told)["answer"] is True


def test_digital_silence_and_faint_noise_are_no_speech():
    assert stretches(noise(), 0.1) == () and stretches(None, 0.1) == ()
    assert stretches(noise((1.0, 2.0), level=1e-4), 0.1) == ()


def test_words_get_the_times_of_their_sound():
    done = Behaviour(((1.07, 2.4), (4.0, 4.3)), ((1.0, "one"), (1.4, "two"), (3.8, "three"), (8.0, "four")), ())
    assert chunks_of(done) == (
        ("one", 1.07, 1.4),
        ("two", 1.4, 2.4),
        ("three", 4.0, 4.3),
        ("four", 8.0, 8.2),
    )
    assert words_after(chunks_of(done), 2.0) == (("two", 2.0, 2.4), ("three", 4.0, 4.3), ("four", 8.0, 8.2))
    assert words_after((Chunk("a", 1.0, None), Chunk("b", 3.0, None)), 2.0) == (("b", 3.0, None),)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("case.json", "{", "no JSON file"),
        ("case.json", "[1]", "not as a recorded case has it"),
        ("output.json", '{"chunks": 3}', "no transcript"),
        ("output.json", '{"chunks": [{"text": "a", "timestamp": [1]}]}', "no transcript"),
        ("pause.json", "nothing", "no JSON file"),
        ("session.jsonl", "nothing\n", "not a session journal"),
        ("input.wav", "nothing", "cannot be read as sound"),
    ],
)
def test_a_damaged_case_is_one_sentence(tmp_path, file, content, sentence):
    Recorded("a", noise(), noise(), 6.0).save(tmp_path)
    assert load(tmp_path / "a").duration_s == 6.0
    (tmp_path / "a" / file).write_text(content)
    with pytest.raises(ValueError, match=sentence) as told:
        load(tmp_path / "a")
    assert file in str(told.value)


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no recorded case"):
        list(load_all(tmp_path))


@pytest.mark.parametrize("target", ["checkpoint", "grpc:", "udp:1.2.3.4", ""])
def test_a_target_that_there_is_not(target):
    with pytest.raises(ValueError, match="grpc:HOST:PORT"):
        targets.parse(target)
    assert targets.parse("grpc:[::1]:50051") == ("grpc", "[::1]:50051")


def test_a_case_is_kept_whole(tmp_path):
    annotations = {"interrupt": [{"timestamp": [1.0, 2.0]}], "rating": {"rating": 4}}
    chunks = (Chunk("one", 2.5, 3.1), Chunk("two", 3.1, None))
    Recorded("b/1", noise((1, 2)), noise((2, 3)), 6.0, "s", "c", EXPECTED, None, chunks, annotations).save(tmp_path)
    Recorded("b/1", noise((1, 2)), noise(), 6.0, prefix="clean_", chunks=()).save(tmp_path)
    clean, whole = load_all(tmp_path)
    assert (whole.prefix, clean.prefix, clean.name, clean.chunks) == ("", "clean_", "b/1", ())
    assert whole.chunks == chunks and whole.annotations == annotations and whole.expectations == EXPECTED
    transcript = json.loads((tmp_path / "b/1/output.json").read_text())
    assert transcript["text"] == "one two" and transcript["chunks"][0] == {"text": "one", "timestamp": [2.5, 3.1]}


def test_what_comes_after_the_end_is_not_recorded():
    case = targets.Case("a", "smoke", "command", talker((0.4, 1.6), seconds=2.0))
    words = [{"t": t, "turn": round(5 * t) - 1, "type": "word", "text": f" {t}"} for t in (1.8, 2.0, 2.2)]
    one = case.recorded(SPEC, noise((1.8, 2.4), seconds=2.4), words)
    assert [chunk.text for chunk in one.chunks] == ["1.8"] and one.events == words[:1]
    assert len(one.output) == len(one.input) == 2 * RATE
