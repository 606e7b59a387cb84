"""The file of a model's voice: read as it was written, or refused in a sentence."""

import pathlib
import re

import numpy as np
import pytest

from tml_jax.checkpoint import convert
from tml_jax.checkpoint.voice import FILE, read_voice, write_voice
from tml_jax.streams import magnitudes
from tml_jax.streams.micro_turn import StreamSpec

SPEC = StreamSpec()


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in magnitudes.shapes(SPEC).items()}


def test_a_voice_is_read_as_it_was_written(weights, tmp_path):
    assert read_voice(tmp_path, SPEC) is None
    path = write_voice(tmp_path / "model", weights)
    assert path == tmp_path / "model" / FILE
    assert path.stat().st_size < 1.5e6
    found = read_voice(tmp_path / "model", SPEC)
    assert found is not None
    assert found.keys() == weights.keys()
    for name, x in found.items():
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, weights[name], rtol=2**-8)
    assert magnitudes.checksum(found) == magnitudes.checksum(dict(reversed(found.items())))
    assert magnitudes.checksum(found) != magnitudes.checksum(found | {"out.bias": -found["out.bias"]})


def test_a_voice_of_another_stream_is_refused(weights, tmp_path):
    path = write_voice(tmp_path, weights)
    told = f"{path} is not of this model's stream: near.weight is (240, 256) in the file, and (120, 256) is needed."
    with pytest.raises(ValueError, match=re.escape(told)):
        read_voice(tmp_path, StreamSpec(mel_bins=40))
    write_voice(tmp_path, {name: x for name, x in weights.items() if name != "out.bias"})
    with pytest.raises(ValueError, match=r"out\.bias is absent in the file, and \(641,\) is needed"):
        read_voice(tmp_path, SPEC)


def test_a_voice_goes_along_with_its_model(weights, tmp_path):
    shipped = pathlib.Path("checkpoints/inkling_tiny")
    for name in ("config.json", "tokenizer.json", *(path.name for path in shipped.glob("model*"))):
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / "from" / name).symlink_to((shipped / name).absolute())
    convert.to_saved_model(tmp_path / "from", tmp_path / "without")
    assert not (tmp_path / "without" / FILE).exists()
    voice = write_voice(tmp_path / "from", weights)
    convert.to_saved_model(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / FILE).read_bytes() == voice.read_bytes()


@pytest.mark.parametrize("size", [0, 4, 100, 300_000])
def test_a_voice_that_is_cut_off_is_refused(weights, tmp_path, size):
    path = write_voice(tmp_path, weights)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_voice(tmp_path, SPEC)


def test_a_voice_of_what_is_no_number_is_refused(weights, tmp_path):
    write_voice(tmp_path, weights | {"out.bias": np.full_like(weights["out.bias"], np.nan)})
    with pytest.raises(ValueError, match="is damaged: not all of its weights are numbers"):
        read_voice(tmp_path, SPEC)
