"""Recorded conversations become what they would have been if simulated; stores of them are read by share."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from tests.data import calls
from tml_jax.data import corpora, pipeline
from tml_jax.data.config import DataConfig
from tml_jax.data.simulator import Simulator
from tml_jax.data.store import ConversationStore, Corpus
from tml_jax.data.timeline import Frames, UserSpeech, render
from tml_jax.streams.micro_turn import UNHEARD, StreamSpec
from tml_jax.streams.text import Tokenizer

SPEC = StreamSpec(audio_tokens=1, max_patches=1, max_text=8, max_output=1, frame_height=40, frame_width=40)
CONFIG = DataConfig(window_turns=100, window_tokens=310)
TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def simulator():
    return Simulator(CONFIG, SPEC, pipeline.open_bank(CONFIG.bank), "train")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, simulator):
    return calls.make(tmp_path_factory.mktemp("corpus") / "calls", simulator, SPEC)


def source(corpus, name):
    return next(s for s in corpora.find(corpus) if s.name == name)


@pytest.mark.parametrize(
    ("name", "same_levels"),
    [("day-0/call-0", 1.0), ("day-1/call-1", 0.98), ("day-0/call-2", 0.7)],
    ids=["wav", "flac", "opus"],
)
def test_a_call_is_what_was_said(corpus, simulator, tokenizer, name, same_levels):
    number = int(name[-1])
    said = simulator.conversation(number, "command")
    said = dataclasses.replace(
        said, events=tuple(e for e in said.events if not hasattr(e, "query") and not hasattr(e, "time_s"))
    )
    truth = render(said, SPEC, tokenizer)
    got = render(corpora.read(source(corpus, name), SPEC, 10.0), SPEC, tokenizer)
    turns = min(len(part[0].active) for part in (truth, got))
    assert abs(len(truth[0].active) - len(got[0].active)) <= 1
    levels = [part[0].audio[:turns] for part in (truth, got)]
    assert np.mean(levels[0] == levels[1]) >= same_levels
    control = tokenizer.control

    def placed(tokens, skip):
        flat = tokens[:turns, 0]
        turn = np.flatnonzero(~np.isin(flat, skip))
        return flat[turn], turn

    for field, skip in (("tokens", [control.listen, control.speak]), ("heard", [control.nothing, UNHEARD])):
        (ids, when), (got_ids, got_when) = (placed(getattr(part[1], field), skip) for part in (truth, got))
        assert len(ids) > 3 and ids.tolist() == got_ids.tolist(), field
        assert np.abs(when - got_when).max() <= 1  # times of a transcript are rounded to milliseconds
    # A tail of 0.1 s is all that may be spoken beside what was.
    speaking = truth[1].speaking[:turns], got[1].speaking[:turns]
    assert np.mean(speaking[0] == speaking[1]) > 0.93


def test_both_transcripts_say_the_same(simulator, tmp_path):
    words = calls.words_of(simulator.conversation(3, "command"))
    calls.write_json(tmp_path / "a.json", words)
    calls.write_vtt(tmp_path / "b.vtt", words)
    plain, cues = (corpora.read_words(tmp_path / name) for name in ("a.json", "b.vtt"))
    for speaker in ("user", "assistant"):
        assert plain[speaker] and [w.text for w in plain[speaker]] == [w.text for w in cues[speaker]]
        for one, other in zip(plain[speaker], cues[speaker], strict=True):
            assert (one.start_s, one.end_s) == pytest.approx((other.start_s, other.end_s), abs=0.021)


def test_a_transcript_is_written_as_the_model_writes(tmp_path):
    path = tmp_path / "a.json"
    calls.write_json(path, [("user", "Room 42, please!", 1.0, 1.8), ("user", "[laughs]", 2.0, 2.5)])
    words = corpora.read_words(path)["user"]
    assert [(w.text, round(w.start_s, 3)) for w in words] == [
        ("room", 1.0),
        ("four", 1.2),
        ("two", 1.4),
        ("please", 1.6),
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_film_is_seen_and_heard(tmp_path, simulator, tokenizer, suffix):
    said = simulator.conversation(9, "watch")
    (truth,) = said.of(Frames)
    calls.write_film(tmp_path / f"film{suffix}", said, SPEC)
    film = corpora.read(source(tmp_path, "film"), SPEC, truth.fps)
    (shown,) = film.of(Frames)
    assert len(shown.frames) == len(truth.frames)
    if suffix == ".mkv":
        assert np.abs(shown.frames.astype(int) - truth.frames).max() <= 3  # RGB through YUV
    inputs, outputs = render(film, SPEC, tokenizer)
    assert inputs.num_patches.sum() > 50 and not outputs.speaking.any() and inputs.has_audio.all()


def test_an_assistant_who_begins_at_once_gets_a_micro_turn(tmp_path, tokenizer):
    tone = 0.1 * np.sin(np.arange(16_000))
    calls.soundfile.write(tmp_path / "a.wav", np.stack([0 * tone, tone], 1), 16_000)
    calls.write_json(tmp_path / "a.json", [("assistant", "hello", 0.0, 0.4)])
    conversation = corpora.read(source(tmp_path, "a"), SPEC, 10.0)
    assert conversation.duration_s == pytest.approx(1.2)
    assert render(conversation, SPEC, tokenizer)[1].speaking[0]


@pytest.mark.parametrize(
    ("words", "channels", "sentence"),
    [
        (None, 2, "no words"),
        ([("assistant", "hello", 0.3, 0.5)], 1, "second of two channels"),
        ([("user", "hello", 0.5, 0.3)], 1, "from 0.5 to 0.3"),
        ([("bob", "hello", 0.3, 0.5)], 1, "words of 'bob'"),
        ("{", 1, "cannot be read"),
        ('{"words": [{"word": "x"}]}', 1, "cannot be read"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, words, channels, sentence):
    calls.soundfile.write(tmp_path / "a.wav", np.full((16_000, channels), 0.1), 16_000)
    if isinstance(words, str):
        (tmp_path / "a.json").write_text(words)
    elif words is not None:
        calls.write_json(tmp_path / "a.json", words)
    with pytest.raises(ValueError, match=sentence):
        corpora.read(source(tmp_path, "a"), SPEC, 10.0)


def test_a_user_without_a_transcript_is_unheard(tmp_path, tokenizer):
    calls.soundfile.write(tmp_path / "a.flac", np.full(16_000, 0.1), 16_000)
    conversation = corpora.read(source(tmp_path, "a"), SPEC, 10.0)
    assert next(conversation.of(UserSpeech)).words is None
    assert (render(conversation, SPEC, tokenizer)[1].heard == UNHEARD).all()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def write(corpus, out, count=2, order=1):
    work = corpora.shards(corpora.find(corpus), 0.3, count)
    return [corpora.write_shard(out, *shard, SPEC, TOKENIZER, 10.0) for shard in work[::order]]


def test_shards_are_a_function_of_their_files(corpus, tmp_path):
    reports = write(corpus, tmp_path / "a")
    assert sum(r.conversations for r in reports) == 5
    (refused,) = [name for r in reports for name, _ in r.refused]
    assert refused == "broken"
    write(corpus, tmp_path / "b", order=-1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert write(corpus, tmp_path / "a") == reports
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}


def test_another_recording_leaves_the_others_where_they_are(corpus):
    sources = corpora.find(corpus)
    places = {s.name: shard[:2] for shard in corpora.shards(sources, 0.3, 4) for s in shard[2]}
    fewer = {s.name: shard[:2] for shard in corpora.shards(sources[1:], 0.3, 4) for s in shard[2]}
    assert fewer == {name: place for name, place in places.items() if name in fewer}
    many = [corpora.Source(f"call-{i}", pathlib.Path(), None) for i in range(2000)]
    held = sum(len(mine) for split, _, mine in corpora.shards(many, 0.1, 8) if split == "heldout")
    assert 160 < held < 240


@pytest.fixture(scope="module")
def stores(tmp_path_factory, simulator, tokenizer):
    """A corpus in shards, of both splits, and a single store."""
    folder = tmp_path_factory.mktemp("stores")
    rendered = [render(simulator.conversation(i), SPEC, tokenizer) for i in range(3)]
    for split, shards in (("train", (0, 1)), ("heldout", (2,))):
        for i in shards:
            ConversationStore.create(folder / "corpus" / split / f"{i:05d}", SPEC).append(rendered[i])
    ConversationStore.create(folder / "single", SPEC).append(rendered[2])
    return folder, rendered


def test_a_corpus_is_its_split(stores):
    folder, rendered = stores
    train, heldout = (Corpus(folder / "corpus", split, SPEC) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (2, 1)
    rng = np.random.default_rng(0)
    for i in range(2):
        window, whole = train.window(i, rng, 10_000), rendered[i]
        jax.tree.map(np.testing.assert_array_equal, window, whole)
    jax.tree.map(np.testing.assert_array_equal, heldout.window(0, rng, 10_000), rendered[2])
    short = train.window(1, rng, 20)[0]
    np.testing.assert_array_equal(
        short.audio, rendered[1][0].audio[(first := int(short.turn[0] - rendered[1][0].turn[0])) : first + 20]
    )


def test_sources_are_mixed_by_share_and_resumed(stores):
    folder, rendered = stores
    config = dataclasses.replace(
        CONFIG, group=2, stores=((str(folder / "corpus"), 0.5), (str(folder / "single"), 0.25))
    )
    made = pipeline.GroupSource(config, SPEC, TOKENIZER, "train")
    of_corpus, of_single = [rendered[0][0].audio, rendered[1][0].audio], [rendered[2][0].audio]
    counts = {"corpus": 0, "single": 0, "simulated": 0}

    def within(window, wholes):
        piece = window[:40].tobytes()
        return any(piece in whole.tobytes() for whole in wholes)

    draws = [np.random.default_rng((config.seed, 7, True, i)).random() for i in range(4000)]
    for i in range(24):
        audio = made._one(i)[0].audio
        kind = "corpus" if within(audio, of_corpus) else "single" if within(audio, of_single) else "simulated"
        counts[kind] += 1
        assert kind == ("corpus" if draws[i] < 0.5 else "single" if draws[i] < 0.75 else "simulated")
    assert min(counts.values()) > 2
    data = pipeline.Pipeline(config, SPEC, TOKENIZER, 4, "train")
    whole, rest = data.batches(), data.batches(2)
    first = [next(whole) for _ in range(3)]
    jax.tree.map(np.testing.assert_array_equal, first[2], next(rest))
    whole.close()
    rest.close()


@pytest.mark.parametrize("stores", [(("a", 0.7), ("b", 0.4)), (("a", -0.1),)])
def test_shares_that_cannot_be(stores):
    with pytest.raises(ValueError, match="shares"):
        DataConfig(stores=stores)


def test_a_store_of_another_stream_or_split_is_refused(stores, tmp_path):
    folder, _ = stores
    other = dataclasses.replace(SPEC, max_text=9)
    with pytest.raises(ValueError, match="another stream"):
        Corpus(folder / "single", "train", other)
    ConversationStore.create(tmp_path / "empty", SPEC)
    with pytest.raises(ValueError, match="holds no train"):
        Corpus(tmp_path / "empty", "train", SPEC)
    config = dataclasses.replace(CONFIG, stores=((str(tmp_path / "none"), 0.5),))
    with pytest.raises(ValueError, match="no conversation store"):
        pipeline.Pipeline(config, SPEC, TOKENIZER, 8, "train")


def test_two_recordings_of_one_name(tmp_path):
    for suffix in (".wav", ".flac"):
        (tmp_path / f"a{suffix}").touch()
    with pytest.raises(ValueError, match="of one name"):
        corpora.find(tmp_path)
    with pytest.raises(ValueError, match="holds no sound"):
        corpora.find(tmp_path / "none")
