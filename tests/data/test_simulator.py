"""Simulated conversations: deterministic, true to their own rules of time, and rendered to the letter."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.simulated import CONFIG, SPEC, expectations_of
from tml_jax.data import pipeline, scenarios
from tml_jax.data.simulator import Simulator
from tml_jax.data.store import ConversationStore
from tml_jax.data.timeline import (
    AssistantSpeech,
    BackgroundResult,
    Conversation,
    Delegate,
    Frames,
    SpokenWord,
    UserSpeech,
    UserText,
    reaction_turn,
    render,
)
from tml_jax.streams import number_words, packed
from tml_jax.streams.micro_turn import UNHEARD
from tml_jax.streams.text import Tokenizer

TOKENIZER = "checkpoints/inkling_tiny/tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def simulators():
    bank = pipeline.open_bank(CONFIG.bank)
    return {split: Simulator(CONFIG, SPEC, bank, split) for split in ("train", "heldout")}


def test_a_conversation_is_a_function_of_its_index(simulators):
    a, b = (simulators["train"].conversation(5) for _ in range(2))
    assert repr(a.expectations) == repr(b.expectations) and len(a.events) == len(b.events)
    for x, y in zip(a.events, b.events, strict=True):
        for field in dataclasses.fields(x):
            np.testing.assert_array_equal(getattr(x, field.name), getattr(y, field.name))
    assert repr(a.expectations) != repr(simulators["train"].conversation(6).expectations)


def test_no_voice_is_on_both_sides(simulators):
    train, heldout = ({s.name for s in simulators[split].cast.speakers} for split in ("train", "heldout"))
    assert train and heldout and not train & heldout


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_scenarios_keep_the_rules_of_time(simulators, name):
    for index in range(6):
        conversation = simulators["heldout"].conversation(index, name)
        speech = list(conversation.of(AssistantSpeech))
        for first, second in itertools.pairwise(speech):
            assert first.start_s + len(first.audio) / SPEC.sample_rate <= second.start_s + 1e-6
        ends = [u.start_s + u.words[-1].end_s for u in conversation.of(UserSpeech) if u.words]
        for expected in conversation.expectations:
            if expected["kind"] == "answer":
                onsets = [s.start_s for s in speech if s.start_s > expected["after"]]
                assert 0.15 <= onsets[0] - expected["after"] <= 0.36
                assert any(abs(expected["after"] - end) < 1e-6 for end in ends)
            if expected["kind"] == "silent":
                assert not any(expected["from"] + 0.2 < s.start_s < expected["to"] for s in speech)
            if expected["kind"] == "stop":
                before = [s for s in speech if s.start_s < expected["after"]]
                assert before[-1].start_s + len(before[-1].audio) / SPEC.sample_rate <= expected["after"] + 0.2 + 1e-4


def test_hesitations_are_inside_requests(simulators):
    found = 0
    for index in range(30):
        conversation = simulators["heldout"].conversation(index, "command")
        spans = [(u.start_s, u.start_s + u.words[-1].end_s) for u in conversation.of(UserSpeech)]
        for expected in conversation.expectations:
            if expected["kind"] == "silent" and expected["reason"] == "hesitation":
                found += 1
                assert any(start < expected["from"] and expected["to"] < end for start, end in spans)
                assert expected["to"] - expected["from"] >= 0.5
    assert found > 10


def test_two_timers_run_at_once_and_end_apart(simulators):
    for conversation, timers in expectations_of(simulators, "two_timers", "timer"):
        asked_for = list(conversation.of(UserSpeech))
        ends = [u.start_s + u.words[-1].end_s for u in asked_for]
        due = [end + number_words.from_words(u.words[3].text) for u, end in zip(asked_for, ends, strict=True)]
        assert [timer["at"] for timer in timers] == pytest.approx(
            [at for pair in zip(due[::2], due[1::2], strict=True) for at in sorted(pair)], abs=0.05
        )
        pairs = list(zip(timers[::2], timers[1::2], strict=True))
        assert pairs and all(one["of"] == other["of"] == 2 for one, other in pairs)
        for (one, other), asked in zip(pairs, ends[1::2], strict=True):
            assert asked < one["at"] < other["at"] - 1.0


def test_what_is_delegated_is_acknowledged_until_the_result_comes(simulators):
    acknowledged = 0
    for index in range(12):
        conversation = simulators["heldout"].conversation(index, "delegate")
        speech, results = list(conversation.of(AssistantSpeech)), list(conversation.of(BackgroundResult))
        for asked, came in zip(conversation.of(Delegate), results, strict=True):
            (before,) = (s for s in speech if asked.time_s < s.start_s <= came.time_s)
            assert before.words[0].text == "okay" and before.start_s <= asked.time_s + 0.3 + 1e-6
            assert came.time_s >= before.start_s + len(before.audio) / SPEC.sample_rate + 0.4 - 1e-6
            after = next(s for s in speech if s.start_s > came.time_s)
            assert (
                " ".join(word.text for word in after.words) == came.text and after.start_s <= came.time_s + 0.2 + 1e-6
            )
            acknowledged += 1
    assert acknowledged > 20


def test_only_training_hears_that_there_is_no_answer(simulators):
    """What is expected of a held-out user's question is what a server's own background model says to it."""
    unknown = {
        split: sum(
            e.text == "i do not know" for i in range(30) for e in one.conversation(i, "delegate").of(BackgroundResult)
        )
        for split, one in simulators.items()
    }
    assert unknown["train"] > 0 and unknown["heldout"] == 0


def test_talk_over_the_model_leaves_it_talking(simulators):
    going = [(one, e) for one, found in expectations_of(simulators, "side_talk", "goes on") for e in found]
    assert len(going) > 10
    for conversation, expectation in going:
        assert any(u.start_s == expectation["from"] for u in conversation.of(UserSpeech))
        assert any(
            s.start_s < expectation["from"] and s.start_s + len(s.audio) / SPEC.sample_rate >= expectation["to"]
            for s in conversation.of(AssistantSpeech)
        )


def test_the_count_is_what_the_video_shows(simulators):
    """Rest, motion, rest: as many times as was counted, by the pixels alone."""
    checked = 0
    for index in range(12):
        conversation = simulators["heldout"].conversation(index, "count")
        film = next(conversation.of(Frames)).frames.astype(np.float32)
        blurred = film.mean(axis=3)
        away = np.abs(blurred - blurred[0]).mean(axis=(1, 2))
        away = away > 0.5 * (away.min() + away.max())
        moves = int(np.sum(away[1:] & ~away[:-1]))
        totals = [e["total"] for e in conversation.expectations if e["kind"] == "count"]
        checked += 1
        assert moves == sum(totals), (index, moves, totals)
    assert checked == 12


def test_rendering_to_the_letter(tokenizer):
    """A hand-made conversation: which token, which sound, which word heard, in which micro-turn."""
    c, rate = tokenizer.control, SPEC.sample_rate
    word = {w: tokenizer.encode(f" {w}")[0] for w in ("stop", "five", "two", "eighty", "four", "hello")}
    loud = np.sin(np.arange(int(0.7 * rate)) * 0.3).astype(np.float32)
    conversation = Conversation(
        3.0,
        (
            UserSpeech(0.1, loud, (SpokenWord("stop", 0.0, 0.25), SpokenWord("five", 0.25, 0.28))),
            AssistantSpeech(1.0, (SpokenWord("five", 0.0, 0.3), SpokenWord("two", 0.45, 0.7)), loud),
            Delegate(2.1, "stop"),
            BackgroundResult(2.5, "eighty four"),
            UserText(2.5, "hello"),
        ),
    )
    inputs, outputs = render(conversation, SPEC, tokenizer, start_turn=40)
    assert inputs.turn.tolist() == list(range(40, 55)) and inputs.active.all() and inputs.has_audio.all()
    said = [c.listen] * 15
    said[4:8] = [word["five"], c.speak, word["two"], c.speak]  # heard from 1.0 s: written one micro-turn before
    said[10] = c.delegate
    assert outputs.tokens[:, 0].tolist() == said
    assert np.flatnonzero(outputs.speaking).tolist() == [4, 5, 6, 7]
    assert len(outputs.mel) == 4 and (np.abs(outputs.mel).sum(axis=(1, 2)) > 0).all()
    heard = [c.nothing] * 15
    heard[1:3] = [word["stop"], word["five"]]  # 0.15 s after both it is micro-turn 2: the first is named when it ends
    assert outputs.heard[:, 0].tolist() == heard
    assert inputs.num_text[12] == 5 and inputs.num_text.sum() == 5
    assert inputs.text[12, :5].tolist() == [c.background, word["eighty"], word["four"], c.user, word["hello"]]


def test_what_is_heard_of_talk(tokenizer):
    """Words that the tokenizer knows, wherever they are said; nothing is known of what nobody wrote down."""
    loud = np.ones(round(0.6 * SPEC.sample_rate), np.float32)
    words = (SpokenWord("seven", 0.0, 0.15), SpokenWord("umbrellas", 0.15, 0.35), SpokenWord("please", 0.35, 0.55))
    talk = (UserSpeech(0.1, loud, words), UserSpeech(1.5, loud))
    _, outputs = render(Conversation(2.6, talk), SPEC, tokenizer)
    nothing = tokenizer.control.nothing
    heard = [nothing] * 13
    heard[1], heard[3] = tokenizer.encode(" seven")[0], tokenizer.encode(" please")[0]
    heard[7:11] = [UNHEARD] * 4  # from 1.5 to 2.1 s
    assert outputs.heard[:, 0].tolist() == heard


def test_the_last_word_of_what_is_said_fast_is_named_in_time(tokenizer):
    """ "is" and "it" could both be named in micro-turn 3: "is" is in 2, where it has ended by then, else "it" waits."""
    word = {w: tokenizer.encode(f" {w}")[0] for w in ("time", "is", "it")}
    nothing, loud = tokenizer.control.nothing, np.ones(round(0.7 * SPEC.sample_rate), np.float32)

    def heard(*ends):
        words = [SpokenWord(w, end - 0.1, end) for w, end in zip(("time", "is", "it"), ends, strict=True)]
        _, outputs = render(Conversation(1.6, (UserSpeech(0.0, loud, tuple(words)),)), SPEC, tokenizer)
        return outputs.heard[:, 0].tolist()

    assert heard(0.4, 0.55, 0.64)[:5] == [nothing, word["time"], word["is"], word["it"], nothing]
    assert heard(0.3, 0.61, 0.64)[:5] == [nothing, nothing, word["time"], word["is"], word["it"]]


def test_an_empty_block_ticks(tokenizer):
    inputs, _ = render(Conversation(1.0, (), has_audio=False), SPEC, tokenizer)
    assert (inputs.num_text == 1).all() and (inputs.text[:, 0] == tokenizer.control.tick).all()


def test_cut_speech_is_never_said(tokenizer):
    words = tuple(SpokenWord(w, 0.5 * i, 0.5 * i + 0.4) for i, w in enumerate(("one", "two", "three", "four")))
    speech = AssistantSpeech(1.0, words, np.ones(32_000, np.float32)).cut(2.2, SPEC.sample_rate)
    _, outputs = render(Conversation(4.0, (speech,)), SPEC, tokenizer)
    assert np.flatnonzero(outputs.speaking).tolist() == [4, 5, 6, 7, 8, 9]
    assert tokenizer.decode(t for t in outputs.tokens[:, 0] if tokenizer.is_word(int(t))) == " one two three"


@pytest.mark.parametrize(("end", "turn"), [(0.99, 5), (1.0, 5), (1.04, 5), (1.06, 6), (1.2, 6)])
def test_the_reaction_rule(end, turn):
    assert reaction_turn(end, 0.15, SPEC) == turn


def _same(a, b):
    for x, y in zip(a, b, strict=True):
        for field in dataclasses.fields(x):
            np.testing.assert_array_equal(getattr(x, field.name), getattr(y, field.name))


def _batches(config, groups=None, workers=0, first=0, split="train"):
    made = pipeline.Pipeline(config, SPEC, TOKENIZER, 2 * config.group, split, groups, workers)
    return made.batches(first)


@pytest.fixture(scope="module")
def replaying():
    """A pipeline of small groups, half of each batch replayed, and its first batches."""
    config = dataclasses.replace(CONFIG, group=2, replay=0.5, replay_pool=3)
    return config, list(itertools.islice(_batches(config), 5))


def test_the_pipeline_resumes_where_it_was(replaying):
    config, wanted = replaying
    for first in (1, 4):
        again = itertools.islice(_batches(config, first=first), 5 - first)
        for a, b in zip(again, wanted[first:], strict=True):
            _same(a, b)


def test_workers_make_the_same_batches_in_the_same_order(replaying):
    config, wanted = replaying
    batches = _batches(config, workers=2, first=2)
    for a, b in zip(itertools.islice(batches, 3), wanted[2:], strict=True):
        _same(a, b)
    batches.close()


def test_what_is_replayed_was_in_an_earlier_batch_or_before_the_first(replaying):
    """At the same place: two places take turns to replay."""
    config, batches = replaying
    turns = [batch[0].turn.reshape(2, 2, -1) for batch in batches]  # two groups of two
    source = pipeline.GroupSource(config, SPEC, TOKENIZER, "train")
    earlier = [source(number)[0].turn for number in range(2)]
    for i, batch in enumerate(turns):
        replayed, fresh = batch if i % 2 == 0 else batch[::-1]
        assert (fresh == source(i + 2)[0].turn).all()
        assert any((replayed == earlier[n]).all() for n in range((i + 1) % 2, len(earlier), 2))
        earlier.append(fresh)


@pytest.mark.parametrize("replay", [0.0, 0.5, 0.67])
def test_batches_are_the_same_on_other_hosts_and_when_resumed(monkeypatch, replay):
    """The conversations of a run that goes on with 4, 2, 1 and again 4 processes are those of one never interrupted."""
    monkeypatch.setattr(pipeline.GroupSource, "__call__", lambda self, number: np.int64(number))
    monkeypatch.setattr(pipeline.packed, "batch", lambda groups, room: [int(group) for group in groups])
    config = dataclasses.replace(CONFIG, group=2, replay=replay, replay_pool=30)

    def batches(first, last, processes):
        """Of a run on so many processes, which fill every so many places of eight."""
        groups = [tuple(range(i, 8, processes)) for i in range(processes)]
        parts = [pipeline.Pipeline(config, SPEC, TOKENIZER, 16, "train", mine).batches(first) for mine in groups]
        for _ in range(first, last):
            batch = dict(
                item for part, mine in zip(parts, groups, strict=True) for item in zip(mine, next(part), strict=True)
            )
            yield [batch[place] for place in range(8)]
        for part in parts:
            part.close()

    wanted = list(batches(0, 40, 1))
    runs = ((0, 9, 4), (9, 14, 2), (14, 15, 1), (15, 40, 4))
    assert [batch for run in runs for batch in batches(*run)] == wanted
    # Each group is new once, one after the other, and as many of a batch are as the share says.
    newest, fresh = [max(batch) for batch in wanted], round((1 - replay) * 8)
    assert newest == list(range(newest[0], newest[0] + 40 * fresh, fresh))
    assert {number for batch in wanted for number in batch} >= set(range(newest[0] - fresh + 1, newest[-1] + 1))


def test_a_batch_is_made_of_whole_groups():
    with pytest.raises(ValueError, match="batch_size must be a multiple of 8"):
        pipeline.Pipeline(CONFIG, SPEC, TOKENIZER, 12, "train")


def test_only_training_hears_spliced_requests():
    """Held-out users say what the bank holds, whatever the share of splices."""
    bank = pipeline.open_bank(CONFIG.bank)

    def requests(split, share):
        behaviour = dataclasses.replace(CONFIG.behaviour, splice_share=share)
        simulator = Simulator(dataclasses.replace(CONFIG, behaviour=behaviour), SPEC, bank, split)
        users = [u for i in range(3) for u in simulator.conversation(i, "command").of(UserSpeech)]
        return [(u.start_s, [w.text for w in u.words]) for u in users]

    assert requests("heldout", 0.0) == requests("heldout", 1.0)
    assert requests("train", 0.0) != requests("train", 1.0)


def test_rows_stay_within_their_room():
    config = dataclasses.replace(CONFIG, group=6, window_patches=20, window_speech=30)
    source = pipeline.GroupSource(config, SPEC, TOKENIZER, "train")
    cut = 0
    for index in range(6):
        inputs, outputs = source(index)
        tokens = packed.trunk_tokens(SPEC, inputs, outputs).sum(axis=1)
        assert tokens.max() <= config.window_tokens
        assert inputs.num_patches.sum() == inputs.patches.shape[1] <= 6 * 20
        assert packed.num_speech(outputs).sum() == outputs.mel.shape[1] <= 6 * 30
        assert (outputs.num_tokens[~inputs.active] == 0).all()
        assert (np.diff(inputs.active.astype(int), axis=1) <= 0).all()  # real micro-turns come first
        cut += inputs.patches.shape[1] > 6 * 20 - 10  # the camera of the last ones found no room
        together = packed.batch([(inputs, outputs)], config.room)
        assert together[0].patches.shape[:2] == (1, 120) and together[1].mel.shape[:2] == (1, 180)
    assert cut


def test_a_batch_holds_what_there_is():
    """The arrays of a batch against the dense ones that it stands for."""
    whole, _ = pipeline.GroupSource(CONFIG, SPEC, TOKENIZER, "train")(1)
    assert 0 < whole.patches.nbytes < 0.25 * whole.active.size * 2 * 40 * 40 * 3 * 4


def test_live_turns_of_packed_conversations(tokenizer, simulators):
    """What a live session gets is what the packed arrays hold, turn by turn."""
    inputs, _ = render(simulators["heldout"].conversation(0, "count"), SPEC, tokenizer)
    short = packed.window((inputs, _), 0, 5)[0]
    seen = []
    for turn in range(len(inputs.active)):
        now = packed.live_turn(SPEC, [inputs, short], turn, 3)
        assert now.active.tolist() == [True, turn < 5, False]
        np.testing.assert_array_equal(now.audio[0], inputs.audio[turn])
        seen.append(now.patches[0, : now.num_patches[0]])
    np.testing.assert_array_equal(np.concatenate(seen), inputs.patches)
    assert len(inputs.patches) > 50


def test_the_store_gives_back_windows(tokenizer, simulators, tmp_path):
    store = ConversationStore.create(tmp_path / "store", SPEC)
    rendered = [render(simulators["heldout"].conversation(i), SPEC, tokenizer) for i in range(2)]
    for i, pair in enumerate(rendered):
        assert store.append(pair, {"index": i}) == i
    reopened = ConversationStore.open(tmp_path / "store")
    assert len(reopened) == 2 and reopened.metadata(1) == {"index": 1}
    inputs, outputs = reopened.read(1, 20, 30)
    np.testing.assert_array_equal(inputs.audio, rendered[1][0].audio[20:50])
    np.testing.assert_array_equal(outputs.tokens, rendered[1][1].tokens[20:50])
    wanted = packed.window(rendered[1], 20, 50)
    _same((inputs, outputs), wanted)
    _same(reopened.read(0), rendered[0])
    assert len(outputs.mel) or len(inputs.patches)
    with pytest.raises(ValueError, match="not inside conversation 1"):
        reopened.read(1, 0, 10_000)
    with pytest.raises(ValueError, match="There is no conversation store"):
        ConversationStore.open(tmp_path)
    (tmp_path / "store" / "index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        ConversationStore.open(tmp_path / "store")


def test_a_bank_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no speech bank"):
        pipeline.Pipeline(dataclasses.replace(CONFIG, bank=str(tmp_path)), SPEC, TOKENIZER, 8, "train")
