"""Training of the vocoder's voice: what it hears, and that it learns."""

import jax
import numpy as np
import pytest

from tml_jax.data.speech_bank import SpeechBank
from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.train import voice

SPEC = StreamSpec()


@pytest.fixture(scope="module")
def bank():
    whole = SpeechBank.load("checkpoints/speech_bank")
    voices = [whole.voices[name] for name in ("kokoro/af_heart", "kokoro/af_sky")]
    return SpeechBank(whole.path, voices, whole.select(voice=[voice.name for voice in voices]))


def test_of_each_text_another_take_is_held_out(bank):
    train, heldout = voice.takes(bank)
    assert not {clip.id for clip in train} & {clip.id for clip in heldout}
    assert len(train) + len(heldout) == len(bank.select(kind="assistant"))
    assert 0.2 < len(heldout) / len(train) < 0.4
    known = {clip.text for clip in train}
    assert sum(clip.text in known for clip in heldout) > 0.9 * len(heldout)


def test_what_is_heard_is_drawn_by_the_seed(bank):
    one, two = (voice.Sounds(bank, SPEC, 3).batch() for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (voice.BATCH, (voice.FRAMES + 3) * SPEC.mel_hop)
    assert one.dtype == np.float32
    assert (one.std(axis=1) > 0.01).all()


def test_a_bank_without_the_assistant_is_refused(bank):
    others = SpeechBank(bank.path, list(bank.voices.values()), [c for c in bank.clips if c.kind != "assistant"])
    with pytest.raises(ValueError, match="has no clips of the assistant"):
        voice.Sounds(others, SPEC, 0)


def test_a_stream_of_another_rate_is_refused(bank):
    spec = StreamSpec(sample_rate=24_000, dmel_hop=1200, dmel_window=2400, mel_hop=480, mel_window=1920)
    with pytest.raises(ValueError, match="The stream has 24000 Hz, and a speech bank's voices have 16000"):
        voice.Sounds(bank, spec, 0)


def test_a_few_steps_bring_the_magnitudes_nearer(bank):
    sound, trainer, key = voice.Sounds(bank, SPEC, 0).batch(), voice.Trainer(SPEC, 12), jax.random.key(0)
    weights, losses = voice.init(SPEC, key), []
    state = trainer.start(weights)
    for _ in range(12):
        weights, state, parts = trainer.step(weights, state, sound, key)
        assert set(parts) == {"log", "convergence"}
        losses.append(float(sum(parts.values())))
    assert losses[-1] < 0.95 * losses[0]
