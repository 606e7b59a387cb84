"""A journal as a trace: every kind of line, and what must not overlap."""

from typing import Any

from tml_jax.eval.trace import trace
from tml_jax.wire.journal import Journal


def drawn(*lines: tuple[str, float, dict[str, Any]], micro_turn_s: float = 0.2) -> dict[str, list[dict[str, Any]]]:
    """What there is on each track that has something."""
    with Journal(None, keep=True) as journal:
        journal.write("session", 0, 0, session="abc", seed=0, micro_turn_s=micro_turn_s, started_unix_s=0.0)
        for kind, t, fields in lines:
            journal.write(kind, t, round(t / micro_turn_s), **fields)
    events = trace(journal.events)["traceEvents"]
    process, *_ = events
    assert process["args"]["name"] == "session abc"
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] != "M":
            tracks.setdefault(names[event["tid"]], []).append(event)
    return tracks


def test_each_task_has_a_track_and_one_without_an_end_lasts_as_long_as_the_session() -> None:
    tracks = drawn(
        ("background", 0.4, {"task": 1, "state": "started", "text": "the time"}),
        ("background", 0.6, {"task": 2, "state": "started", "text": "a sum"}),
        ("background", 0.8, {"task": 1, "state": "progress", "text": "half way"}),
        ("background", 1.2, {"task": 1, "state": "finished", "text": "noon"}),
        ("background", 1.4, {"task": None, "state": "finished", "text": "of the client's own"}),
        ("step", 2.0, {"ms": 10.0, "missed": False}),
    )
    one, (two,) = tracks["background task 1"], tracks["background task 2"]
    assert [(e["name"], e["ph"], e["ts"], e.get("dur")) for e in one] == [
        ("progress", "i", 800_000, None),
        ("the time", "X", 400_000, 800_000),
    ]
    assert (two["ts"], two["dur"], two["args"]["state"]) == (600_000, 1_400_000, "not finished")
    (own,) = tracks["background task None"]
    assert (own["ts"], own["dur"], own["name"]) == (1_400_000, 0, "of the client's own")


def test_a_step_that_takes_too_long_says_how_long_and_ends_where_the_next_may_begin() -> None:
    steps = drawn(("step", 0.2, {"ms": 350.5, "missed": True}), ("step", 0.4, {"ms": 12.5, "missed": False}))["steps"]
    assert [(e["name"], e["ts"], e["dur"], e["args"]["ms"]) for e in steps] == [
        ("late step", 200_000, 200_000, 350.5),
        ("step", 400_000, 12_500, 12.5),
    ]


def test_words_and_sound_lie_where_they_are_heard() -> None:
    tracks = drawn(
        ("heard", 0.3, {"text": " sev"}),
        ("heard", 0.4, {"text": "en please"}),
        ("lost", 0.4, {"ms": 40}),
        ("shortened", 0.4, {"ms": 30}),
        ("word", 0.5, {"text": " seven"}),
        ("speak", 0.5, {}),
        ("voice", 0.5, {"level": 0.1, "onset_ms": 30}),
        ("speak", 0.6, {}),
        ("voice", 0.6, {"level": 0.1, "onset_ms": 0}),
        ("delegate", 0.7, {}),
        ("error", 0.7, {"text": "gone"}),
        micro_turn_s=0.1,
    )
    (heard,), (said, handed_over), (sound,) = (tracks[f"{name}"] for name in HEARD)
    assert (heard["name"], heard["ts"], heard["dur"]) == ("seven please", 200_000, 100_000)
    assert (said["name"], said["ts"], said["dur"]) == ("seven", 500_000, 100_000)
    assert (handed_over["ph"], handed_over["s"], handed_over["ts"]) == ("i", "t", 700_000)
    assert (sound["ts"], sound["dur"]) == (530_000, 170_000)
    (lost, shortened), (error,) = tracks["user: sound that did not come"], tracks["session"]
    assert (shortened["name"], shortened["args"]["ms"]) == ("shortened", 30)
    assert (lost["ph"], lost["ts"], lost["args"]["ms"]) == ("i", 400_000, 40)
    assert error["name"] == "gone"


HEARD = ("user: words heard", "model: words", "model: sound")
