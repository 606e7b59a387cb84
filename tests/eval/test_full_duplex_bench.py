"""Full-Duplex-Bench's rules on cases worked by hand, on its published examples, and on our own samples."""

import math

import numpy as np
import pytest
import soundfile

from tests.eval.test_recorded import noise
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.eval import full_duplex_bench as bench
from tml_jax.eval import full_duplex_samples
from tml_jax.eval.recorded import Chunk, Recorded, load_all
from tml_jax.streams.micro_turn import StreamSpec


def said(*times, length=0.2, text="word"):
    return [Chunk(text, start, start + length) for start in times]


def sample(category, annotations, chunks, output=None, user=None, prefix="", name="0"):
    output, user = noise() if output is None else output, noise() if user is None else user
    return Recorded(
        f"{category}/{name}", user, output, 6.0, bench.SUITE, category, (), None, chunks, annotations, prefix
    )


@pytest.mark.parametrize(
    ("chunks", "taken"),
    [
        ([], False),
        (said(1.0, 1.2, 1.4), False),  # three words in 0.6 s
        (said(1.0, 1.2, 1.4, 1.6), True),  # more than three
        (said(1.0, length=1.0), True),  # one word of exactly a second
        (said(1.0, length=0.99), False),
        ([Chunk("a", 1.0, 1.2), Chunk("b", 2.1, None)], True),  # an end that nobody knows: its start stands for it
        ([Chunk("a", 1.0, 1.2), Chunk("b", 1.9, None)], False),
    ],
)
def test_a_turn_is_a_second_or_more_than_three_words(chunks, taken):
    assert bench.takes_over(chunks) is taken


def test_published_examples():
    """The three samples in the public repository: their annotations, and the first and last words of their outputs."""
    pause = sample(
        "pause_handling_example", {"pause": [{"text": "[PAUSE]", "timestamp": [3.32, 4.0]}]}, said(0.0, 4.48)
    )
    taking = [{"text": "[TURN-TAKING]", "timestamp": [2.01, 2.4]}]
    taken = sample("smooth_turn_taking_example", {"turn_taking": taking}, said(3.36, 8.0))
    interrupt = [{"context": "books?", "interrupt": "fiction?", "timestamp": [10.530666666666667, 13.144]}]
    notes = {"interrupt": interrupt, "rating": {"analysis": "", "rating": 4}}
    interrupted = sample("user_interruption_example", notes, said(17.224, 22.0))
    figures = bench.summarise([pause, taken, interrupted])
    assert figures == {
        "pause_handling_example_cases": 1,
        "pause_handling_example_take_over": 1.0,
        "smooth_turn_taking_example_cases": 1,
        "smooth_turn_taking_example_take_over": 1.0,
        "smooth_turn_taking_example_latency_s": pytest.approx(1.35),
        "user_interruption_example_cases": 1,
        "user_interruption_example_take_over": 1.0,
        "user_interruption_example_latency_s": pytest.approx(4.08),
        "user_interruption_example_rating": 4.0,
    }


def test_latency_is_of_turns_alone_and_never_negative():
    taking = {"turn_taking": [{"timestamp": [2.0, 2.4]}]}
    early, late, short = said(1.5, 3.0), said(2.6, 4.0), said(2.1)
    figures = bench.summarise([sample("t", taking, chunks) for chunks in (early, late, short)])
    assert figures["t_take_over"] == pytest.approx(2 / 3)
    assert figures["t_latency_s"] == pytest.approx((0.0 + 0.6) / 2)


def test_words_before_the_end_of_an_interruption_do_not_count():
    notes = {"interrupt": [{"timestamp": [2.0, 3.0]}]}
    figures = bench.summarise([sample("i", notes, said(0.5, 1.0, 1.5, 2.0, 3.4))])
    assert figures["i_take_over"] == 0.0 and "i_latency_s" not in figures
    figures = bench.summarise([sample("i", notes, said(1.0, 2.9, 3.2, 3.9))])
    assert (figures["i_take_over"], figures["i_latency_s"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("spoken", "chunks", "taken", "count"),
    [
        ([], [], False, 0),
        ([(1.0, 1.5)], said(1.0), False, 1),
        ([(1.0, 1.9)], said(1.0, 1.3), False, 1),
        ([(1.0, 1.9)], said(1.0, 1.3, 1.6), True, 1),  # three words in a short stretch
        ([(1.0, 2.0)], said(1.0), True, 1),  # a second
        ([(1.0, 2.0), (4.0, 4.4)], said(1.0, 4.0), False, 2),  # the last one decides
        ([(1.0, 1.4), (2.0, 5.1), (5.5, 5.7)], said(1.0), True, 1),  # more than three seconds ends the count
        ([(1.0, 1.5)], [Chunk("a", 1.0, None)] * 5, False, 1),  # words without an end are not counted
    ],
)
def test_backchannels(spoken, chunks, taken, count):
    assert (bench.backchannels(spoken, chunks)[0], len(bench.backchannels(spoken, chunks)[1])) == (taken, count)


def test_divergence_of_times():
    # Windows 0 and 1 of 5 against a person in windows 1 and 2, equally: half of each lies where the other has nothing.
    assert bench.divergence([(0.05, 0.25)], 0.9, [0.0, 0.5, 0.5, 0.0, 0.0]) == pytest.approx(
        math.sqrt(math.log(2) / 2), abs=1e-4
    )
    assert bench.divergence([(0.25, 0.45)], 0.9, [0.0, 0.5, 0.5, 0.0, 0.0]) == pytest.approx(0.0, abs=1e-4)
    # Three points over five windows are 0, 1/4, 1/2, 1/4, 0; all in the middle has 0, 1/8, 3/4, 1/8, 0 between them.
    squared = (math.log(1 / 0.75) + 0.5 * math.log(0.5 / 0.75) + 2 * 0.25 * math.log(2)) / 2
    assert bench.divergence([(0.45, 0.5)], 0.9, [0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(squared), abs=1e-4)
    assert bench.divergence([], 0.9, [1.0]) == 1.0


def test_people_are_found_by_folder_or_beside_the_sample():
    output = noise((1.0, 1.5))
    notes = {"distribution": [1.0] * 31}
    figures = bench.summarise([sample("icc_backchannel", notes, said(1.1), output)])
    assert figures["icc_backchannel_a_second"] == pytest.approx(1 / 6)
    assert "icc_backchannel_divergence" not in bench.summarise([sample("icc_backchannel", {}, said(1.1), output)])
    counts = np.zeros(31)
    counts[4:8] = 1.0  # 0.97 to 1.53 s, with the margins
    agreed = bench.summarise([sample("icc_backchannel", notes, said(1.1), output)], {"0": counts.tolist()})
    assert agreed["icc_backchannel_divergence"] == pytest.approx(0.0, abs=1e-4)
    assert figures["icc_backchannel_divergence"] > 0.5


def test_stop_and_response_latencies():
    user, system = [(0.0, 2.0), (4.0, 5.0), (7.0, 7.5)], [(1.0, 1.5), (2.5, 4.4), (4.6, 6.0)]
    assert bench.overlaps(user, system) == [(1.0, 1.5), (4.0, 4.4), (4.6, 5.0)]
    assert bench.response_gaps(user, system) == [(2.0, 2.5)]  # nothing begins after the last two
    assert bench.response_gaps([(0.0, 1.0), (1.2, 1.8)], [(2.5, 3.0)]) == [(1.8, 2.5)]  # the later end
    assert bench.merged([(0.0, 1.0), (1.5, 2.0), (2.6, 3.0)], 0.5) == [(0.0, 2.0), (2.6, 3.0)]


def test_v1_5_is_measured_on_the_sounds():
    metadata = {"metadata": {"context_text": "a", "current_turn_text": "b", "timestamps": [3.0, 4.0]}}
    user, output = noise((0.5, 1.5), (3.0, 4.0)), noise((2.0, 3.4), (4.6, 5.5))
    figures = bench.summarise([sample("user_interruption", metadata, [], output, user)])
    assert figures["user_interruption_stop_latency_s"] == pytest.approx(0.4 + 2 * 0.03, abs=0.021)
    assert figures["user_interruption_response_latency_s"] == pytest.approx(0.55 - 2 * 0.03, abs=0.021)


@pytest.mark.parametrize(
    ("before", "after", "asked", "behaviour"),
    [
        ("one two", "", "yeah", bench.UNKNOWN),
        ("one two", "three four five", "yeah", bench.RESUME),
        ("one two", "sorry could you repeat that", "what about five", bench.UNCERTAIN),
        ("one two", "paris is nice", "how is paris", bench.RESPOND),
        ("one two", "seven five", "say seven five", bench.RESPOND),  # not the rest of the count, in its order
        ("one two", "purple", "how is paris", bench.UNKNOWN),
        ("one two", "is it", "is it you", bench.UNKNOWN),  # function words say nothing
        ("one two", "one two", "yeah", bench.UNKNOWN),  # that was said before
    ],
)
def test_behaviours_offline(before, after, asked, behaviour):
    def placed(text, start):
        return [Chunk(word, start + 0.3 * i, start + 0.3 * i + 0.2) for i, word in enumerate(text.split())]

    clean = placed("one two three four five six", 1.0)
    assert bench.behaviour_offline(placed(before, 1.0) + placed(after, 4.0), clean, asked, 3.0) == behaviour


def test_a_judge_goes_before_the_words():
    metadata = {"metadata": {"context_text": "", "current_turn_text": "yeah", "timestamps": [3.0, 4.0]}}
    clean = sample("o", metadata, said(1.0, 4.5, text="one"), prefix="clean_")
    offline = bench.summarise([sample("o", metadata, said(1.0, 4.5, text="one")), clean])
    assert offline["o_cases"] == 1 and offline["o_behaviour_offline_C_RESUME"] == 1.0
    judged = metadata | {"content_tag": {"behaviour": ["C_RESPOND"]}}
    figures = bench.summarise([sample("o", judged, said(1.0, 4.5, text="one")), clean])
    assert figures["o_behaviour_judged_C_RESPOND"] == 1.0 and "o_behaviour_offline_C_RESUME" not in figures


@pytest.mark.parametrize(
    ("annotations", "chunks", "sentence"),
    [
        ({}, [], "no sample of Full-Duplex-Bench"),
        ({"pause": []}, None, "no output.json"),
        ({"turn_taking": []}, [], "not as Full-Duplex-Bench has it"),
        ({"interrupt": {}}, [], "not as Full-Duplex-Bench has it"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(annotations, chunks, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.summarise([sample("t", annotations, chunks)])


@pytest.fixture(scope="module")
def bank():
    return SpeechBank.load("checkpoints/speech_bank")


def test_own_samples_are_in_the_published_layout_and_repeat(bank):
    cases = full_duplex_samples.draw(bank, StreamSpec(), 3, 2)
    again = full_duplex_samples.draw(bank, StreamSpec(), 3, 2)
    assert [case.annotations for case in cases] == [case.annotations for case in again]
    assert len({case.name for case in cases}) == 16 and len(cases) == 16 + 8
    voices = {clip.voice for clip in bank.select(split="heldout")}
    assert voices
    for case in cases:
        one = case.recorded(StreamSpec(), np.zeros(0, np.float32), ())
        assert bench.task_of(one) and len(one.input) == len(one.output) == round(case.conversation.duration_s * 16_000)
        if case.category == "synthetic_pause_handling":
            (pause,) = case.annotations["pause"]
            start, end = pause["timestamp"]
            words = case.annotations["transcription"]
            assert any(w["timestamp"][1] == pytest.approx(start) for w in words)
            assert end < case.conversation.duration_s == pytest.approx(words[-1]["timestamp"][1])
        if case.category == "user_interruption":
            start, end = (round(16_000 * t) for t in case.annotations["metadata"]["timestamps"])
            assert bool(np.abs(one.input[start:end]).max() > 0.01) is (case.prefix == "")


def test_published_data_is_played_and_scored(bank, tmp_path):
    """A sample as it is downloaded, then as it is kept with a system's sound and words."""
    folder = tmp_path / "data" / "v1_5" / "user_backchannel" / "4"
    folder.mkdir(parents=True)
    soundfile.write(folder / "input.wav", noise((0.5, 1.0), (3.0, 3.4)), 16_000)
    soundfile.write(folder / "clean_input.wav", noise((0.5, 1.0)), 16_000)
    text = '{"context_text": "hello", "current_turn_text": "right", "timestamps": [3.0, 3.4]}'
    (folder / "metadata.json").write_text(text)
    clean, whole = bench.read_cases(tmp_path / "data")
    assert (whole.name, whole.category, clean.prefix) == ("v1_5/user_backchannel/4", "user_backchannel", "clean_")
    events = [
        {"t": 1.6, "turn": 7, "type": "word", "text": " hello"},
        {"t": 3.6, "turn": 17, "type": "word", "text": " you"},
    ]
    for case in (clean, whole):
        case.recorded(StreamSpec(), noise((1.6, 5.0)), events).save(tmp_path / "out")
    figures = bench.summarise(load_all(tmp_path / "out"))
    assert figures["user_backchannel_cases"] == 1 and figures["user_backchannel_behaviour_offline_C_RESUME"] == 1.0
    assert figures["user_backchannel_stop_latency_s"] == pytest.approx(0.4 + 2 * 0.03, abs=0.021)
    with pytest.raises(ValueError, match="no sample"):
        bench.read_cases(tmp_path / "data" / "v1_5" / "user_backchannel" / "4" / "nothing")
