"""Patches as Inkling's image processor makes them, and the frames of a micro-turn."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tml_jax.streams import frames, pictures
from tml_jax.streams.micro_turn import StreamSpec

SPEC = StreamSpec()
TINY = StreamSpec(audio_tokens=1, max_patches=1, max_text=8, max_output=1, frame_height=40, frame_width=40)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def inkling_patches(frame):
    """What `InklingImageProcessor` does: it needs torchvision, which does not load beside a CPU torch."""
    image = torch.from_numpy(frame).permute(2, 0, 1)
    height, width = image.shape[1:]
    mean, std = (torch.tensor(v) * 255 for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    patches = []
    for y in range(0, height, 40):
        for x in range(0, (width // 40 + 1) * 40, 40):
            patch = image[:, y : y + 40, x : x + 40].float()
            patch = torch.nn.functional.pad(patch, (0, 40 - patch.shape[2], 0, 40 - patch.shape[1]), value=-1.0)
            patches.append((patch - mean[:, None, None]) / std[:, None, None])
    return torch.stack(patches).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(40, 40), (80, 120), (33, 57), (1, 1), (100, 41), (320, 320)])
def test_patches_are_inklings(size):
    frame = picture(*size)
    np.testing.assert_array_equal(frames.patchify(frame, SPEC, inkling_column=True), inkling_patches(frame))


@pytest.mark.parametrize(("size", "count"), [((40, 40), 1), ((80, 120), 6), ((41, 40), 2), ((320, 320), 64)])
def test_video_drops_patches_without_a_pixel(size, count):
    frame = picture(*size)
    ours, all_of_them = frames.patchify(frame, SPEC), inkling_patches(frame)
    padding = inkling_patches(np.zeros((1, 40, 3), np.uint8))[0, -1]
    real = np.array([not (patch == padding[-1]).all() for patch in all_of_them])
    assert len(ours) == real.sum() == count == frames.num_patches(*size, SPEC)
    np.testing.assert_array_equal(ours, all_of_them[real])


def test_pairs_stack_two_frames():
    first, second = picture(80, 40, 1), picture(80, 40, 2)
    pairs = frames.pair_patches(first, second, SPEC)
    assert pairs.shape == (2, 2, 40, 40, 3)
    np.testing.assert_array_equal(pairs[:, 0], frames.patchify(first, SPEC))
    np.testing.assert_array_equal(pairs[:, 1], frames.patchify(second, SPEC))
    with pytest.raises(ValueError, match="differ in size"):
        frames.pair_patches(first, picture(40, 40), SPEC)


def test_tiny_stream_takes_the_first_and_the_last_frame():
    stream = frames.FrameStream(TINY)
    shots = [picture(40, 40, i) for i in range(5)]
    assert stream.push([]).shape == (0, 2, 40, 40, 3)
    for arrived, pair in (([0], (0, 0)), ([1, 2], (1, 2)), ([0, 1, 2, 3, 4], (0, 4))):
        patches = stream.push([shots[i] for i in arrived])
        assert patches.dtype == np.float32
        np.testing.assert_array_equal(patches, frames.pair_patches(shots[pair[0]], shots[pair[1]], TINY))


def test_large_stream_takes_as_many_pairs_as_fit():
    spec = dataclasses.replace(TINY, max_patches=5, frame_height=80)
    stream = frames.FrameStream(spec)
    assert stream.max_frames == 4
    shots = [np.full((80, 40, 3), 10 * i, np.uint8) for i in range(7)]
    first_pixels = (stream.push(shots)[:, :, 0, 0, 0] * OPENAI_CLIP_STD[0] + OPENAI_CLIP_MEAN[0]) * 255
    np.testing.assert_allclose(first_pixels, [[0, 20], [0, 20], [40, 60], [40, 60]], atol=1e-3)
    assert len(stream.push(shots[:3])) == 4  # the third frame is paired with itself


def test_frames_of_other_sizes_are_resized():
    half = np.zeros((480, 640, 3), np.uint8)
    half[:, 320:] = 255
    patch = frames.FrameStream(TINY).push([half])[0, 0, ..., 0]
    dark, bright = (np.float32(v - 255 * OPENAI_CLIP_MEAN[0]) / (255 * OPENAI_CLIP_STD[0]) for v in (0, 255))
    np.testing.assert_allclose(patch[:, :16], dark, atol=1e-5)
    np.testing.assert_allclose(patch[:, 24:], bright, atol=1e-5)


@pytest.mark.parametrize("frame", [picture(4, 4)[..., 0], picture(4, 4) / 255, picture(4, 4)[:0], [1, 2]])
def test_what_is_no_frame_is_said(frame):
    with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\]"):
        frames.FrameStream(TINY).push([frame])


def test_spec_without_room_for_a_frame_is_said():
    with pytest.raises(ValueError, match="makes 2 patches, more than max_patches=1"):
        frames.FrameStream(dataclasses.replace(TINY, frame_width=80))


def test_a_turned_picture_is_set_upright():
    frame = picture(2, 3)
    quarter = pictures.Turn(transposed=True, up_down=True).apply(frame)
    np.testing.assert_array_equal(quarter, np.rot90(frame))
    np.testing.assert_array_equal(pictures.Turn(left_right=True, up_down=True).apply(frame), np.rot90(frame, 2))
    np.testing.assert_array_equal(pictures.Turn().apply(frame), frame)
