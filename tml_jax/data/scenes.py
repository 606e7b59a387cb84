"""Small videos of something that repeats: a ball, a figure raising its arms, a swinging bar, an opening mouth.

A scene draws frames for given *phases*: 0 is at rest, and a repetition runs from 0 to 1, where the motion is back
at rest. Colours, place, size, direction and clutter are drawn once a scene.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SIZE = 40
KINDS = ("ball", "arms", "bar", "mouth")

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
_Layer = tuple[np.ndarray, np.ndarray]  # coverage [n or 1, H, W] in 0..1, colour [3]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene.

    Attributes:
      kind: one of `KINDS`.
      background: float32 [H, W, 3], 0..255.
      draw: phases [n] -> layers, painted in order over the background.
      grain: standard deviation of the camera's noise.
    """

    kind: str
    background: np.ndarray
    draw: Callable[[np.ndarray], list[_Layer]]
    grain: float

    def frames(self, phases: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [n, H, W, 3] of the phases [n]."""
        image = np.repeat(self.background[None], len(phases), axis=0)
        for coverage, colour in self.draw(np.asarray(phases, np.float32)):
            image += coverage[..., None] * (colour - image)
        image += rng.standard_normal(image.shape, dtype=np.float32) * self.grain
        return np.clip(image, 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """Draws a scene; all of its randomness comes from `rng`."""
    kind = kind or str(rng.choice(KINDS))
    base = rng.uniform(0, 255, 3).astype(np.float32)
    slope = rng.uniform(-1.5, 1.5, (2, 1, 1, 3)).astype(np.float32)
    background = base + slope[0] * (_X[..., None] - SIZE / 2) + slope[1] * (_Y[..., None] - SIZE / 2)
    for _ in range(rng.integers(0, 4)):  # furniture
        top, left = rng.integers(0, SIZE, 2)
        height, width = rng.integers(4, 20, 2)
        background[top : top + height, left : left + width] = rng.uniform(0, 255, 3)
    background = np.clip(background, 0, 255)
    level = float(background.mean())
    bright = rng.uniform(0, 70, 3) if level > 127 else rng.uniform(185, 255, 3)  # the mover stands out
    colour = np.clip(bright + rng.uniform(-25, 25, 3), 0, 255).astype(np.float32)
    make = {"ball": _ball, "arms": _arms, "bar": _bar, "mouth": _mouth}[kind]
    return Scene(kind, background.astype(np.float32), make(rng, colour), float(rng.uniform(0, 6)))


def _swing(phase: np.ndarray) -> np.ndarray:
    """Out and back, gently: [n] -> [n, 1, 1]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * phase))[:, None, None]


def _disc(y: np.ndarray | float, x: np.ndarray | float, radius: np.ndarray | float) -> np.ndarray:
    return np.clip(radius - np.sqrt((_Y - y) ** 2 + (_X - x) ** 2) + 0.5, 0, 1)


def _stroke(
    y0: np.ndarray | float, x0: np.ndarray | float, y1: np.ndarray | float, x1: np.ndarray | float, width: float
) -> np.ndarray:
    """A line with round ends."""
    dy, dx = y1 - y0, x1 - x0
    along = np.clip(((_Y - y0) * dy + (_X - x0) * dx) / np.maximum(dy * dy + dx * dx, 1e-6), 0, 1)
    distance = np.sqrt((_Y - y0 - along * dy) ** 2 + (_X - x0 - along * dx) ** 2)
    return np.clip(width / 2 - distance + 0.5, 0, 1)


def _ball(rng: np.random.Generator, colour: np.ndarray) -> Callable[[np.ndarray], list[_Layer]]:
    radius = rng.uniform(3, 7)
    reach = rng.uniform(12, 40 - 2 * radius - 3)
    bounces = rng.random() < 0.5
    vertical = rng.random() < 0.7
    side = rng.uniform(radius + 2, SIZE - radius - 2)
    low = rng.uniform(radius + 1 + reach, SIZE - radius - 1)
    mirrored = not vertical and rng.random() < 0.5

    def draw(phase: np.ndarray) -> list[_Layer]:
        out = (4 * phase * (1 - phase))[:, None, None] if bounces else _swing(phase)
        place = low - reach * out
        if mirrored:
            place = SIZE - 1 - place
        return [(_disc(place, side, radius) if vertical else _disc(side, place, radius), colour)]

    return draw


def _arms(rng: np.random.Generator, colour: np.ndarray) -> Callable[[np.ndarray], list[_Layer]]:
    height = rng.uniform(24, 36)
    x = rng.uniform(14, 26)
    top = rng.uniform(1, SIZE - 2 - height)
    head = height * rng.uniform(0.09, 0.13)
    shoulder, hip, foot = top + height * 0.28, top + height * 0.6, top + height
    arm = height * rng.uniform(0.28, 0.36)
    width = rng.uniform(1.6, 3.2)
    rest, raised = rng.uniform(0.1, 0.5), rng.uniform(2.0, 2.9)  # angle from hanging down, radians
    skin = np.clip(colour + rng.uniform(-40, 40, 3), 0, 255).astype(np.float32)

    def draw(phase: np.ndarray) -> list[_Layer]:
        angle = rest + (raised - rest) * _swing(phase)
        dy, dx = arm * np.cos(angle), arm * np.sin(angle)
        body = np.maximum(_stroke(shoulder, x, hip, x, width * 1.5), _disc(top + head, x, head))
        legs = np.maximum(_stroke(hip, x, foot, x - 4, width), _stroke(hip, x, foot, x + 4, width))
        arms = np.maximum(
            _stroke(shoulder, x, shoulder + dy, x - dx, width), _stroke(shoulder, x, shoulder + dy, x + dx, width)
        )
        return [(np.maximum(body, legs)[None], colour), (arms, skin)]

    return draw


def _bar(rng: np.random.Generator, colour: np.ndarray) -> Callable[[np.ndarray], list[_Layer]]:
    length = rng.uniform(15, 24)
    y, x = rng.uniform(13, 27, 2)
    rest = rng.uniform(0, 2 * np.pi)
    sweep = rng.uniform(0.9, 2.2) * rng.choice([-1, 1])
    width = rng.uniform(2, 5)

    def draw(phase: np.ndarray) -> list[_Layer]:
        angle = rest + sweep * _swing(phase)
        return [(_stroke(y, x, y + length * np.sin(angle), x + length * np.cos(angle), width), colour)]

    return draw


def _mouth(rng: np.random.Generator, colour: np.ndarray) -> Callable[[np.ndarray], list[_Layer]]:
    radius = rng.uniform(12, 18)
    y, x = rng.uniform(radius, SIZE - 1 - radius, 2)
    dark = (
        rng.uniform(0, 50, 3).astype(np.float32) if colour.mean() > 127 else rng.uniform(190, 255, 3).astype(np.float32)
    )
    wide, opening = radius * rng.uniform(0.3, 0.5), radius * rng.uniform(0.35, 0.5)

    def draw(phase: np.ndarray) -> list[_Layer]:
        half = 0.8 + opening * _swing(phase)
        reach = np.sqrt(((_Y - y - radius * 0.4) / half) ** 2 + ((_X - x) / wide) ** 2)
        mouth = np.clip((1 - reach) * np.minimum(half, wide) + 0.5, 0, 1)
        eyes = np.maximum(
            _disc(y - radius * 0.3, x - radius * 0.4, 1.6), _disc(y - radius * 0.3, x + radius * 0.4, 1.6)
        )
        return [(_disc(y, x, radius)[None], colour), (eyes[None], dark), (mouth, dark)]

    return draw


@dataclasses.dataclass(frozen=True)
class Repetitions:
    """When a repeating motion happens: repetition i runs from `starts[i]` to `ends[i]`, in seconds."""

    starts: tuple[float, ...]
    ends: tuple[float, ...]

    def phases(self, times: np.ndarray) -> np.ndarray:
        """Phase at each time, 0 where the motion rests."""
        phases = np.zeros(len(times), np.float32)
        for start, end in zip(self.starts, self.ends, strict=True):
            during = (times >= start) & (times < end)
            phases[during] = (times[during] - start) / (end - start)
        return phases


def draw_repetitions(
    rng: np.random.Generator, count: int, start_s: float, repetition_s: tuple[float, float], latest_s: float
) -> Repetitions:
    """Draws `count` repetitions of one tempo with jitter, some with a rest between them.

    Args:
      rng: the draws.
      count: how many.
      start_s: when the first begins.
      repetition_s: range of a repetition's length.
      latest_s: repetitions that would end later are left out.
    """
    tempo = rng.uniform(*repetition_s)
    rest = rng.uniform(0.1, 0.8) if rng.random() < 0.4 else 0.0
    starts, ends, time = [], [], start_s
    for _ in range(count):
        length = float(np.clip(tempo * rng.uniform(0.85, 1.15), *repetition_s))
        if time + length > latest_s:
            break
        starts.append(time)
        ends.append(time + length)
        time += length + rest * rng.uniform(0.7, 1.3)
    return Repetitions(tuple(starts), tuple(ends))
