"""What a person sees: the live timeline in a terminal, the same as lines elsewhere, and the picture."""

import io
import pathlib

import numpy as np
import PIL.Image
from rich.console import Console

from tml_jax.client import live_view
from tml_jax.eval import plot
from tml_jax.wire import events

LISTEN = events.Decision.LISTEN


def told() -> list[events.Event]:
    turns = [events.Turn(k, LISTEN, 250.0 if k == 7 else 30.0, k == 7, 0, 0.1 if k < 4 else 0.0, 0) for k in range(12)]
    others: list[events.Event] = [
        events.HeardWords(2, " hel", 400, 600),
        events.HeardWords(3, "lo", 600, 800),
        events.Words(6, " good", 1400, 1600),
        events.Words(8, " morning", 1800, 2000),
        events.Sound(6, 1400, 1600, np.zeros(3200, np.float32), 0.2),
        events.Background(9, 0, "finished", "forty two"),
    ]
    return sorted([*turns, *others], key=lambda event: getattr(event, "turn", 0))


def test_a_terminal_shows_words_at_their_micro_turns() -> None:
    view = live_view.LiveView(console=Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None))
    with view:
        for event in told():
            view.observe(event)
    shown = io.StringIO()
    Console(file=shown, width=60).print(view._picture())
    rows = {line[:8].strip(): line[8:] for line in shown.getvalue().splitlines()}
    assert rows["heard"].index("hello") == 2
    assert rows["says"].index("good") == 6
    assert rows["says"].index("morning") == 11, "pushed to the right of the word before"
    assert rows["you"][:6].strip() == rows["you"][:4] != "    "
    assert rows["model"].strip() == rows["model"][6]
    assert "!forty two" in rows["events"]
    assert "deadline misses 1" in shown.getvalue()


def test_without_a_terminal_there_are_lines() -> None:
    file = io.StringIO()
    with live_view.LiveView(console=Console(file=file, width=80)) as view:
        for event in told():
            view.observe(event)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert lines == [
        "0.6 s you hel",
        "0.8 s you lo",
        "1.4 s model good",
        "1.6 s late the step took 250 ms",
        "1.8 s model morning",
        "2.0 s background finished: forty two",
    ]


def test_the_picture_shows_each_side_and_every_late_step(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    sound = plot.Sound((0.3 * rng.standard_normal(30 * 16_000)).astype(np.float32), 16_000)
    journal = [{"t": 0.0, "turn": 0, "type": "session", "micro_turn_s": 0.2}]
    for k in range(150):
        journal.append({"t": (k + 1) * 0.2, "turn": k, "type": "step", "ms": 30.0, "missed": False})
    journal.append({"t": 3.0, "turn": 14, "type": "word", "text": "seven\x01"})
    frames = [(25.0, np.full((40, 40, 3), (0, 255, 0), np.uint8))]

    def colours(name: str, journal: list[dict]) -> set[tuple[int, int, int]]:
        plot.plot_timeline(tmp_path / name, journal, sound, sound, frames, "title")
        pixels = np.asarray(PIL.Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3)
        return set(map(tuple, pixels.tolist()))

    seen = colours("good.png", journal)
    assert (0, 255, 0) in seen, "the camera's picture"
    late = [{**event, "missed": True, "ms": 280.0} if event["turn"] == 40 else event for event in journal]
    red = (0xD6, 0x28, 0x28)
    height = PIL.Image.open(tmp_path / "good.png").height
    assert height > 900, "half a minute takes two lines"
    colours("late.png", late)
    pictures = [np.asarray(PIL.Image.open(tmp_path / name).convert("RGB")) for name in ("good.png", "late.png")]
    good, bad = (int((picture == red).all(axis=-1).sum()) for picture in pictures)
    assert bad > good + 100
