"""Pictures are decoded elsewhere: this process stays free for sound, and lives on where a decoder does not."""

import io
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest

from tml_jax.serve.picture_decoder import PictureDecoder
from tml_jax.streams import pictures

SEEN = 48, 32


def png(side: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.radial_gradient("L").convert("RGB").resize((side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def decoder() -> Iterator[PictureDecoder]:
    decoder = PictureDecoder()
    yield decoder
    decoder.close()
    assert not decoder._all


def test_it_makes_what_is_made_here(decoder: PictureDecoder) -> None:
    data, raw = png(100), np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(decoder.decode(data, 0, 0, *SEEN, pictures.HEAVY_PIXELS), pictures.read(data, *SEEN))
    np.testing.assert_array_equal(decoder.decode(raw.tobytes(), 30, 20, *SEEN, 0), pictures.resize(raw, *SEEN))
    with pytest.raises(pictures.HeavyError):
        decoder.decode(data, 0, 0, *SEEN, 9_999)
    with pytest.raises(ValueError, match=r"^A video frame of 5 bytes cannot be decoded: it is no whole"):
        decoder.decode(b"hello", 0, 0, *SEEN, pictures.MAX_PIXELS)


def test_a_large_picture_takes_none_of_this_process_s_time(decoder: PictureDecoder) -> None:
    data = png(4096)
    began = time.process_time()
    pictures.read(data, *SEEN)
    here_s = time.process_time() - began
    decoder.start()
    began = time.process_time()
    decoder.decode(data, 0, 0, *SEEN, pictures.MAX_PIXELS)
    assert time.process_time() - began < here_s / 10


def test_a_decoder_that_dies_takes_its_picture_alone(decoder: PictureDecoder) -> None:
    data = png(40)
    whole = decoder.decode(data, 0, 0, *SEEN, pictures.HEAVY_PIXELS)
    (process,) = decoder._all
    os.kill(process.pid, signal.SIGTERM)  # as whoever ends a whole group of processes does
    np.testing.assert_array_equal(decoder.decode(data, 0, 0, *SEEN, pictures.HEAVY_PIXELS), whole)
    process.kill()
    process.wait()
    with pytest.raises(ValueError, match=r"^A video frame of \d+ bytes cannot be decoded.$"):
        decoder.decode(data, 0, 0, *SEEN, pictures.HEAVY_PIXELS)
    np.testing.assert_array_equal(decoder.decode(data, 0, 0, *SEEN, pictures.HEAVY_PIXELS), whole)
