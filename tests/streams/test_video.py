"""Video files: when each frame is shown, which way up it is, and what is kept of it."""

import fractions
import gc
import math
import tracemalloc

import av
import numpy as np
import pytest

from tml_jax.client import media
from tml_jax.streams import video


def shade(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def write(path, shots, times=None, rate=25):
    """A video of these frames, shown at `times` (in units of 1 / rate)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *shots[0].shape[:2], "yuv420p"
        stream.options = {"qscale": "2"}
        for i, shot in enumerate(shots):
            frame = av.VideoFrame.from_ndarray(shot, format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(path, fps, size=(0, 0)):
    times, shots = zip(*video.open_video(path, fps).pictures(*size), strict=True)
    return list(times), list(shots)


def test_frames_come_at_their_own_times(tmp_path):
    uneven = [0, 1, 2, 3, 10, 11, 40]
    path = write(tmp_path / "vfr.mkv", [shade(30 * i) for i in range(7)], uneven, rate=20)
    times, shots = shown(path, fps=100)
    assert times == pytest.approx([n / 20 for n in uneven], abs=1e-3)
    assert [shot.mean() for shot in shots] == pytest.approx([30 * i for i in range(7)], abs=4)
    assert video.open_video(path, 100).end_s == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(("fps", "kept"), [(10, [0, 3, 5, 8, 10, 13, 15, 18]), (25, list(range(20))), (1, [0])])
def test_they_are_thinned_out_by_time(tmp_path, fps, kept):
    times, _ = shown(write(tmp_path / "clip.mp4", [shade(9 * i) for i in range(20)]), fps)
    assert times == pytest.approx([n / 25 for n in kept], abs=1e-3)


def test_a_start_after_that_of_the_sound_is_kept(tmp_path):
    path = tmp_path / "offset.mkv"
    with av.open(str(path), "w") as container:
        picture, audio = container.add_stream("mpeg4", rate=10), container.add_stream("pcm_s16le", rate=8000)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        audio.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(audio.encode(sound))
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(shade(0, 32, 32), format="rgb24")
            frame.pts = 7 + i
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
    assert shown(path, 10)[0] == pytest.approx([0.7, 0.8, 0.9], abs=1e-3)


def turned(path, degrees, mirrored=False):
    """Writes into an mp4 that it is shown mirrored, then turned counter-clockwise by `degrees`."""
    cos, sin = (round(65_536 * f(math.radians(degrees))) for f in (math.cos, math.sin))
    sign = -1 if mirrored else 1
    matrix = np.array([sign * cos, -sign * sin, 0, sin, cos, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + len(matrix)] = matrix
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_phone_that_was_held_upright_is_seen_upright(tmp_path, degrees, mirrored):
    shot = np.kron(np.array([[0, 80, 160], [250, 40, 120]], np.uint8), np.ones((32, 32), np.uint8))
    shot = np.repeat(shot[..., None], 3, axis=2)
    path = turned(write(tmp_path / "phone.mp4", [shot]), degrees, mirrored)
    truth = np.rot90(shot[:, ::-1] if mirrored else shot, degrees // 90)
    (seen,) = shown(path, 25)[1]
    assert seen.shape == truth.shape
    np.testing.assert_allclose(seen[16::32, 16::32], truth[16::32, 16::32], atol=6)
    (small,) = shown(path, 25, (truth.shape[1] // 2, truth.shape[0] // 2))[1]
    np.testing.assert_allclose(small[8::16, 8::16], truth[16::32, 16::32], atol=6)


def test_a_video_that_is_turned_by_no_quarter_is_refused(tmp_path):
    path = turned(write(tmp_path / "clip.mp4", [shade(9)]), 30)
    with pytest.raises(ValueError, match=r"^The video '.*clip.mp4' is turned by 30 degrees: only quarters can be"):
        video.open_video(path, 25)


def test_frames_are_no_larger_than_what_is_seen_of_them(tmp_path):
    path = write(tmp_path / "wide.mp4", [shade(i, 180, 640) for i in range(3)])
    assert {shot.shape for shot in shown(path, 25)[1]} == {(90, 320, 3)}
    assert {shot.shape for shot in shown(path, 25, (40, 40))[1]} == {(40, 142, 3)}
    assert {shot.shape for shot in shown(path, 25, (2000, 2000))[1]} == {(180, 640, 3)}


def write_jpegs(path, shots):
    """A video in which every frame is a file of its own, 25 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *shots[0].shape[:2], "yuvj420p"
        for i, shot in enumerate(shots):
            packet = av.Packet(media.to_jpeg(shot))
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, fractions.Fraction(1, 25), i, i
            container.mux(packet)
    return path


def test_a_size_that_changes_in_the_middle_is_followed(tmp_path):
    path = write_jpegs(tmp_path / "changes.mkv", [shade(100)] * 5 + [shade(200, 96, 32)] * 5)
    times, shots = shown(path, 25)
    assert times == pytest.approx([n / 25 for n in range(10)], abs=1e-3)
    assert [shot.shape[:2] for shot in shots] == [(48, 64)] * 5 + [(96, 32)] * 5
    assert [shot.mean() for shot in shots] == pytest.approx([100] * 5 + [200] * 5, abs=3)


def test_frames_that_were_taken_are_not_kept(tmp_path):
    path = write(tmp_path / "long.mp4", [shade(i % 250, 360, 640) for i in range(150)])
    pictures = video.open_video(path, 25).pictures(320, 320)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        sizes = [shot.nbytes for _, shot in pictures]
        _, most = tracemalloc.get_traced_memory()
        decoded = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(sizes) == 150
    assert most < 12 * sizes[0], "a few frames at a time, not all 150"
    assert decoded < 12, "freed at once, not when the garbage collector comes: frames of 4K have 12 MB"


def test_unreadable_videos_are_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^There is no video file .*none.mp4'\.$"):
        video.open_video(tmp_path / "none.mp4", 10)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        video.open_video(tmp_path / "text.mp4", 10)
    clip = write(tmp_path / "clip.mp4", [shade(i) for i in range(12)])
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cut\.mp4'"):
        video.open_video(tmp_path / "cut.mp4", 10)


def test_damage_in_the_middle_costs_the_damaged_frames_alone(tmp_path):
    path = write_jpegs(tmp_path / "clip.avi", [shade(9 * i) for i in range(20)])
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8", len(data) // 3)
    data[at : at + 600] = bytes(600)
    path.write_bytes(data)
    assert 15 <= len(shown(path, 25)[0]) < 20
