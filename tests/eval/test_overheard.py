"""Talk by recorded people: every recording is played once, and a model's starts are counted as one would hear them."""

import numpy as np
import pytest
import soundfile

from tml_jax.eval import overheard
from tml_jax.wire.behaviour import Behaviour


def test_plays_every_recording_once_a_speaker_at_a_time(tmp_path):
    rng, seconds = np.random.default_rng(0), {}
    for name in ("anna/a.wav", "anna/b.wav", "bert/c.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        seconds[name] = float(rng.uniform(20, 50))
        soundfile.write(tmp_path / name, 0.1 * rng.normal(size=round(8000 * seconds[name])), 8000)
    (tmp_path / "bert" / "transcripts.txt").write_text("c: a line\n")
    anna, bert = overheard.conversations(str(tmp_path))
    assert [[len(e.audio) / 16000 for e in c.events] for c in (anna, bert)] == [
        pytest.approx([seconds["anna/a.wav"], seconds["anna/b.wav"]], abs=0.01),
        pytest.approx([seconds["bert/c.flac"]], abs=0.01),
    ]
    first, second = anna.events
    assert 0.3 <= first.start_s <= 2 and 0.3 <= second.start_s - first.start_s - seconds["anna/a.wav"] <= 2.1
    loud = np.sqrt(np.mean(np.square(first.audio)))
    assert 20 * np.log10(loud) == pytest.approx(overheard.LEVEL_DB, abs=1.5)


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no recordings"):
        list(overheard.conversations(str(tmp_path)))


def test_starts_and_shares():
    done = Behaviour(((1.0, 1.4), (1.6, 2.0), (10.0, 10.6), (20.0, 20.2)), (), ())
    silent = Behaviour((), (), ())
    assert overheard.starts(done.sound) == [1.0, 10.0, 20.0]
    figures = overheard.summarise([(90.0, done), (30.0, silent)])
    assert figures["overheard_minutes"] == 2.0
    assert figures["overheard_starts_a_minute"] == 1.5
    assert figures["overheard_share_spoken"] == pytest.approx(1.6 / 120)
