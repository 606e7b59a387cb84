"""Video in: frames -> normalised 40x40 patches, two frames deep, as Inkling's image processor makes them.

A still image of Inkling is a patch repeated twice; in video the two layers of a patch are two frames in a row.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from tml_jax.streams.micro_turn import StreamSpec
from tml_jax.streams.pictures import check_frame, resize

# CLIP's statistics of red, green and blue.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PADDING = -1.0  # of a pixel that the frame does not have; the others are 0 to 255


@functools.cache
def _affine() -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(_MEAN, np.float32) * np.float32(255), np.asarray(_STD, np.float32) * np.float32(255)


def num_patches(height: int, width: int, spec: StreamSpec) -> int:
    """Patches of a video frame."""
    return -(-height // spec.patch_size) * -(-width // spec.patch_size)


def patchify(
    frame: UInt8[np.ndarray, "height width 3"], spec: StreamSpec, inkling_column: bool = False
) -> Float[np.ndarray, "patches patch_size patch_size 3"]:
    """Cuts a frame into normalised patches, row by row; those at the edges are filled up.

    Args:
      frame: RGB, at its own size.
      spec: gives the size of a patch.
      inkling_column: Inkling's processor cuts ``width // patch_size + 1`` columns, so that an image whose width is
        a multiple of the patch has one more column, all padding. True gives these bits; in video it would only
        cost tokens.
    """
    size = spec.patch_size
    height, width = check_frame(frame).shape[:2]
    rows, columns = -(-height // size), width // size + 1 if inkling_column else -(-width // size)
    padded = np.full((rows * size, columns * size, 3), _PADDING, np.float32)
    padded[:height, :width] = frame
    mean, std = _affine()
    padded -= mean
    padded /= std
    patches = padded.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return patches.reshape(-1, size, size, 3)


def pair_patches(
    previous: UInt8[np.ndarray, "height width 3"], frame: UInt8[np.ndarray, "height width 3"], spec: StreamSpec
) -> Float[np.ndarray, "patches 2 patch_size patch_size 3"]:
    """Patches of two frames in a row, of the same size."""
    if previous.shape != frame.shape:
        raise ValueError(f"The two frames of a patch differ in size: {previous.shape} and {frame.shape}.")
    return np.stack([patchify(previous, spec), patchify(frame, spec)], axis=1)


class FrameStream:
    """Patches of the frames that arrive in a micro-turn.

    Frames are taken in pairs, as many pairs as `spec.max_patches` holds. More frames than that are thinned evenly,
    from the first to the last; the last one is repeated where its partner is missing.
    """

    def __init__(self, spec: StreamSpec) -> None:
        needed = num_patches(spec.frame_height, spec.frame_width, spec)
        if spec.patch_frames != 2:
            raise ValueError(f"Patches are two frames deep, not patch_frames={spec.patch_frames}.")
        if needed > spec.max_patches:
            raise ValueError(
                f"A frame of {spec.frame_height}x{spec.frame_width} makes {needed} patches, more than "
                f"max_patches={spec.max_patches}."
            )
        self._spec = spec
        self.max_frames = spec.max_patches // needed * spec.patch_frames

    def push(
        self, frames: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> Float[np.ndarray, "patches 2 patch_size patch_size 3"]:
        """The patches of one micro-turn's frames, at most `spec.max_patches`.

        Args:
          frames: RGB of any size, in the order in which they were seen; none, one or more.

        Raises:
          ValueError: one of them is not uint8 [height, width, 3].
        """
        chosen = list(frames)
        if len(chosen) > self.max_frames:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, self.max_frames).round().astype(int)]
        width, height = self._spec.frame_width, self._spec.frame_height
        chosen = [resize(frame, width, height) for frame in chosen]
        if len(chosen) % 2:
            chosen.append(chosen[-1])
        size = self._spec.patch_size
        empty = np.zeros((0, 2, size, size, 3), np.float32)
        pairs = [pair_patches(chosen[i], chosen[i + 1], self._spec) for i in range(0, len(chosen), 2)]
        return np.concatenate([empty, *pairs])
