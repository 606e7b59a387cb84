"""A camera that FFmpeg makes up."""

import itertools

import pytest

from tml_jax.client.camera import Camera


def test_pictures_come_thinned_out_and_as_small_as_the_model_sees() -> None:
    camera = Camera("testsrc=size=320x240:rate=1000", fps=20.0, format="lavfi")
    shots = list(itertools.islice(camera.pictures(40, 40), 4))
    assert {frame.shape for _, frame in shots} == {(40, 53, 3)}
    slots = [int(time_s * 20) for time_s, _ in shots]
    assert slots == sorted(set(slots)), "one in a twentieth of a second"
    assert all(frame.std() > 10 for _, frame in shots)


def test_one_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"^The camera '/nowhere/video7' cannot be opened \(.+\): use a file\.$"):
        next(Camera("/nowhere/video7").pictures(40, 40))
