"""The parts of the server on their own: pacing, inbox, intake, journal, playback, summary."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.fakes import SPEC
from tml_jax.client import summary
from tml_jax.client.playback import SAFETY_S, Playback
from tml_jax.serve import intake
from tml_jax.serve.assembler import Assembler
from tml_jax.serve.inbox import Block, Inbox
from tml_jax.serve.pacing import AHEAD_S, DRIFT, Pacer
from tml_jax.streams.dmel import dmel
from tml_jax.streams.micro_turn import empty_input
from tml_jax.streams.sound import resample
from tml_jax.wire.journal import Journal, read_journal

TICK = 99


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 16_000), min_size=1, max_size=12), st.integers(0, 2**31))
def test_chunks_of_one_sample_to_one_second_give_the_same_micro_turns(sizes: list[int], seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, sum(sizes)).astype(np.float32)
    inbox = Inbox(SPEC, TICK, lambda: None)
    pacer = Pacer(0.2, 0.4)
    pacer.begin(0.0)
    assembler = Assembler(SPEC, True, inbox, pacer)
    for piece in np.split(samples, np.cumsum(sizes)[:-1]):
        assembler.push(piece)
    assembler.pad(expected=False)
    count = inbox.queued
    assert count == len(samples) // 3200 + 1
    blocks = [inbox.take(empty_input(SPEC, (1,)), 0) for _ in range(count)]
    whole = dmel(np.pad(samples, (0, count * 3200 - len(samples))), SPEC)
    assert np.array_equal(np.concatenate([block.levels for block in blocks]), whole)
    assert blocks[-1].silence_ms == (count * 3200 - len(samples)) // 16


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000])
def test_resampling_does_not_depend_on_the_chunks(rate: int) -> None:
    rng = np.random.default_rng(0)
    pcm = (3000 * rng.standard_normal(rate)).astype("<i2")
    sound = intake.SoundFormat(rate, 1)

    def streamed(sizes: np.ndarray) -> np.ndarray:
        one = intake.SoundIntake(sound, SPEC)
        pieces = [one.push(piece.tobytes()) for piece in np.split(pcm, sizes) if len(piece)]
        return np.concatenate([*pieces, one.flush()])

    cut = streamed(np.sort(rng.choice(len(pcm), 60, replace=False)))
    assert np.array_equal(streamed(np.array([rate // 2])), cut)
    assert abs(len(cut) - 16_000 - round(16_000 * intake.DELAY_S)) <= 2


@pytest.mark.parametrize("chunk_ms", [10, 20, 100, 200, 1000])
@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_a_micro_turn_of_any_rate_is_complete_when_its_last_sample_is_there(rate: int, chunk_ms: int) -> None:
    one, arrived = intake.SoundIntake(intake.SoundFormat(rate, 1), SPEC), 0
    starts = [round(k * chunk_ms * rate / 1000) for k in range(3000 // chunk_ms + 1)]
    for start, end in itertools.pairwise(starts):
        arrived += len(one.push(bytes(2 * (end - start))))
        turns = int(end / rate / SPEC.micro_turn_s + 1e-6)
        assert arrived >= turns * SPEC.samples, f"{arrived} samples after {end / rate} s"


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 15_999, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_sound_goes_on_in_the_middle_with_the_same_bits(rate: int) -> None:
    pcm = np.random.default_rng(rate).integers(-9000, 9000, 3 * rate).astype("<i2")

    def chunks(one: intake.SoundIntake, start: int) -> np.ndarray:
        pieces = np.split(pcm[start:], range(rate // 3, len(pcm) - start, rate // 3))
        return np.concatenate([*(one.push(piece.tobytes()) for piece in pieces if len(piece)), one.flush()])

    whole = chunks(intake.SoundIntake(intake.SoundFormat(rate), SPEC), 0)
    for made in (0, 50, 3200, 6400, 22_400, 44_800):
        again = intake.SoundIntake(intake.SoundFormat(rate), SPEC, made)
        assert again.received <= made * rate / 16_000
        assert np.array_equal(chunks(again, again.received), whole[made:]), made


def test_live_sound_of_another_rate_is_that_of_the_file_after_the_delay() -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 48_000).astype("<i2")
    one = intake.SoundIntake(intake.SoundFormat(8000, 1), SPEC)
    live = np.concatenate([*(one.push(piece.tobytes()) for piece in np.split(samples, 300)), one.flush()])
    delay = round(16_000 * intake.DELAY_S)
    assert not live[:delay].any()
    assert np.array_equal(live[delay:], resample(samples.astype(np.float32) / 32768, 8000, 16_000))


def test_channels_are_averaged_and_floats_are_read() -> None:
    stereo = np.array([[0.5, -0.1], [0.25, 0.75]], np.float32)
    sound = intake.SoundIntake(intake.SoundFormat(16_000, 2, intake.SampleFormat.F32LE), SPEC)
    assert sound.push(stereo.tobytes()) == pytest.approx([0.2, 0.5])
    integers = intake.SoundIntake(intake.SoundFormat(16_000, 2), SPEC)
    assert integers.push((stereo * 32768).astype("<i2").tobytes()) == pytest.approx([0.2, 0.5], abs=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_sound_that_is_not_finite_is_refused_before_it_is_computed_with(channels: int) -> None:
    form = intake.SoundFormat(16_000, channels, intake.SampleFormat.F32LE)
    signalling = np.uint32(0x7F80_0001).view(np.float32)
    for bad in ([np.nan], [signalling], [np.inf, -np.inf]):
        samples = np.full((320, channels), 0.5, np.float32)
        samples[-1, -len(bad) :] = bad[-channels:]
        one = intake.SoundIntake(form, SPEC)
        with pytest.raises(intake.BadInputError, match="An audio chunk holds samples that are not finite numbers"):
            one.push(samples.tobytes())
        assert one.received == 0
    loudest = np.full((320, channels), np.finfo(np.float32).max)
    assert intake.SoundIntake(form, SPEC).push(loudest.tobytes()).tolist() == [1.0] * 320


def _micro_turns(inbox: Inbox, count: int) -> list[list[int]]:
    texts = []
    for _ in range(count):
        inputs = empty_input(SPEC, (2,))
        inbox.take(inputs, 1)
        assert inputs.active.tolist() == [False, True]
        texts.append(inputs.text[1, : inputs.num_text[1]].tolist())
    return texts


def test_text_waits_for_its_micro_turn_and_what_does_not_fit_for_the_next() -> None:
    inbox = Inbox(SPEC, TICK, lambda: None)
    silent = Block(levels=None)
    inbox.put_text(range(3))
    inbox.put(silent)
    inbox.put_text(range(10, 21))  # while micro-turn 1 is filled: the engine, not there yet, must not read it in 0
    for _ in range(4):
        inbox.put(silent)
    assert _micro_turns(inbox, 4) == [[0, 1, 2], list(range(10, 18)), [18, 19, 20], [TICK]]


def test_a_micro_turn_with_sound_has_no_tick() -> None:
    inbox = Inbox(SPEC, TICK, lambda: None)
    inbox.put(Block(levels=np.ones((10, 80), np.int32)))
    assert _micro_turns(inbox, 1) == [[]]


def test_pacing_steps_a_fast_client_in_real_time_and_catches_up_after_a_stall() -> None:
    pacer = Pacer(0.2, 0.4)
    pacer.begin(100.0, 0.2)
    poured = [pacer.complete(100.0, 0.2 * (k + 1)) for k in range(50)]
    assert poured[0] <= 100.0
    assert poured[-1] == pytest.approx(100.0 + 50 * 0.2 - AHEAD_S, rel=2 * DRIFT)
    assert np.diff(poured) == pytest.approx([0.2] * 49, rel=2 * DRIFT)
    stalled = Pacer(0.2, 0.4)
    stalled.begin(100.0, 0.2)
    assert all(stalled.complete(101.0, 0.2 * (k + 1)) < 101.0 for k in range(5)), "all of a late burst may go at once"


@pytest.mark.parametrize("late_s", [0.13, 0.45])
def test_pacing_makes_nobody_wait_whose_first_sound_alone_was_late(late_s: float) -> None:
    pacer = Pacer(0.2, 0.4)
    pacer.begin(100.02 + late_s, 0.02)
    for k in range(100):
        now = 100.0 + max(0.2 * (k + 1), late_s)
        assert pacer.complete(now, 0.2 * (k + 1)) <= now


def test_pacing_calls_sound_late_after_the_set_time_and_forgives_once_it_is_back() -> None:
    pacer = Pacer(0.2, 0.4)
    pacer.begin(100.0)
    pacer.complete(100.2, 0.2)
    assert not pacer.late(100.79)
    assert pacer.late(100.81)
    pacer.skip()
    assert not pacer.late(100.81)
    assert pacer.late(101.01)
    pacer.complete(101.3, 0.4)
    assert not pacer.late(101.89)
    assert pacer.late(101.91)


@pytest.mark.parametrize("slower", [1.0005, 0.9995])
def test_pacing_bears_a_clock_that_runs_slow_or_fast_for_hours(slower: float) -> None:
    pacer = Pacer(0.2, 0.4)
    pacer.begin(0.0)
    now = 0.0
    for k in range(20_000):
        now += 0.2 * slower
        assert not pacer.late(now - 1e-6)
        assert pacer.complete(now, 0.2 * (k + 1)) <= now


def test_a_journal_can_be_read_back_after_a_crash(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "session.jsonl"
    journal = Journal(path)
    assert not path.exists()
    written = [journal.write("word", 0.2 * k, k, text=f"wörd {k}") for k in range(3)]
    with path.open("a") as file:  # not closed: as a killed process leaves it
        file.write('{"t": 0.8, "turn": 4, "ty')
    assert read_journal(path) == written
    journal.close()
    journal.write("word", 9.0, 45, text="after the end")
    assert len(read_journal(path)) == 3
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 is no event"):
        read_journal(path)


def _sound(value: int) -> np.ndarray:
    return np.full(3200, value / 32767, np.float32)


def test_playback_in_real_time_starts_on_arrival_and_runs_on_without_gaps() -> None:
    playback = Playback(16_000, real_time=True)
    playback.add(_sound(1000), 4, 1.0, 1.05)
    playback.add(_sound(2000), 5, 1.2, 1.28)  # due at 1.25 + SAFETY_S: in time
    playback.add(_sound(3000), 6, 1.4, 1.60)  # due at 1.45 + SAFETY_S: too late
    sound = np.round(playback.sound(2.0) * 32767)
    starts = [int(np.argmax(sound == value)) / 16_000 for value in (1000, 2000, 3000)]
    assert starts == pytest.approx(np.add([1.05, 1.25, 1.60], SAFETY_S))
    assert playback.underruns == 1
    assert len(sound) == 32_000


def late_playback() -> Playback:
    """Micro-turns 4 to 8, of which the network held up 5 to 8 for 1 s: each is heard 1 s later than it could be."""
    playback = Playback(16_000, real_time=True)
    playback.add(_sound(1000), 4, 1.0, 1.05, 1)
    for turn in range(5, 9):
        playback.add(_sound(1000 * turn), turn, 0.2 * (turn + 1), 2.28 + turn / 1000, 1)
    return playback


def test_what_was_cut_short_is_not_played_to_its_end() -> None:
    playback = late_playback()
    heard_out = playback.sound(4.0)
    at_s = 2.385 + SAFETY_S  # 0.1 s into micro-turn 5, and after all of it came
    until_s = playback.cut(1, at_s)
    assert until_s == pytest.approx(1.3)
    playback.add(_sound(9000), 9, 2.0, 2.44, 1)  # of the same stretch, and too late
    cut = playback.sound(4.0)
    now = round(at_s * 16_000)
    assert np.flatnonzero(heard_out)[-1] / 16_000 == pytest.approx(3.085 + SAFETY_S, abs=1e-3), (
        "0.7 s stale, without the cut"
    )
    assert np.array_equal(cut[:now], heard_out[:now])
    assert np.all(np.abs(np.diff(cut[now - 1 :])) < 5000 / 32767 / 100), "it fades"
    assert not cut[now + 160 :].any()
    playback.add(_sound(3000), 12, 2.6, 2.65, 2)
    assert np.round(playback.sound(4.0) * 32767).max() == 5000, "the next stretch is played"
    assert np.argmax(playback.sound(4.0)[now + 160 :] > 0) + now + 160 == pytest.approx(
        (2.65 + SAFETY_S) * 16_000, abs=2
    )


def test_what_was_played_already_is_not_cut() -> None:
    playback = late_playback()
    heard = playback.sound(4.0)
    assert playback.cut(1, 3.2) is None
    assert np.array_equal(playback.sound(4.0), heard)
    faster = Playback(16_000, real_time=False)
    faster.add(_sound(1000), 4, 1.0, 0.1, 1)
    assert faster.cut(1, 0.1) is None
    assert faster.sound(2.0).any(), "without real time all is placed where the session says"


def test_turn_taking_is_measured_on_the_sound() -> None:
    rng = np.random.default_rng(0)

    def speech(*spans: tuple[float, float]) -> np.ndarray:
        sound = 1e-4 * rng.standard_normal(10 * 16_000)
        for start, end in spans:
            sound[round(start * 16_000) : round(end * 16_000)] += 0.1 * rng.standard_normal(
                round((end - start) * 16_000)
            )
        return sound.astype(np.float32)

    user = speech((1.0, 1.4), (1.6, 2.0), (4.0, 5.0), (7.0, 8.0))
    reply = speech((2.4, 3.0), (3.1, 3.5), (5.3, 6.5))
    journal = [{"t": 0.2, "turn": 0, "type": "step", "ms": 20.0, "missed": False}]
    figures = summary.summarise(journal, user, 16_000, reply, 16_000)
    assert figures["turn_taking_latencies_s"] == [pytest.approx(0.4, abs=0.03), pytest.approx(0.3, abs=0.03), None]
    assert (figures["user_utterances"], figures["user_utterances_answered"]) == (3, 2)
    silent = summary.summarise(journal, user, 16_000, np.zeros(1000, np.float32), 16_000)
    assert silent["reply_sound_s"] == 0
