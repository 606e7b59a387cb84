"""Tools: the published folders, and the rules on calls worked by hand."""

import json

import pytest

from tests.eval.suites.chat_judge import model
from tml_jax.eval.bootstrap import Estimate, Hidden
from tml_jax.eval.suites import full_duplex_v3 as v3
from tml_jax.eval.suites.full_duplex_v3 import Example
from tml_jax.eval.suites.judge import ChatJudge

SCENARIO = {
    "id": "travel_01",
    "domain": "travel_identity",
    "difficulty": "medium",
    "title": "Search and book",
    "disfluency_features": ["FILLER", "SELF_CORRECTION"],
    "state_rollback_test": True,
    "dialogue": [{"user": "hi", "ai": "hello"}, {"user": "fly me", "ai": "I will book it."}],
    "expected_tool_calls": [
        {"function": "search_flights", "args": {"destination": "London", "date": "August 20"}},
        {"function": "book_flight", "args": {"flight_id": "$RESULT_0.flights[0].flight_id"}},
    ],
}
RESULT = {
    "example_id": "travel_01",
    "actual_tool_calls": [
        {"function": "search_flights", "args": {"destination": "london", "date": "August 20"}, "timestamp_start": 6.5},
        {"function": "book_flight", "args": {"flight_id": "F7", "seat": "12A"}, "timestamp_start": 8.0},
    ],
    "transcript": "Booked.",
    "asr_chunks": [{"text": "Booked.", "timestamp": [9.0, 9.4]}],
    "user_speech_end_rel": 5.0,
    "audio_agent_speech_start": 9.0,
}
EXAMPLE = Example(
    "travel_01_65e8cf8f4c7424fa062e54a3",
    ("travel_identity", "medium", "2_calls", "filler", "self_correction", "rollback"),
    (
        ("search_flights", {"destination": "London", "date": "August 20"}),
        ("book_flight", {"flight_id": "$RESULT_0.flights[0].flight_id"}),
    ),
    (
        ("search_flights", {"destination": "london", "date": "August 20"}),
        ("book_flight", {"flight_id": "F7", "seat": "12A"}),
    ),
    "I will book it.",
    "Booked.",
    True,
    5.0,
    9.0,
    6.5,
)


def keep(root, folder=EXAMPLE.name, result=RESULT, provider="ours", metadata=SCENARIO):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"result_{provider}.json").write_text(json.dumps(result))
    if metadata is not None:
        (root / folder / "metadata.json").write_text(json.dumps(metadata))


def test_loads_the_published_folders(tmp_path):
    keep(tmp_path / "data")
    assert v3.load(tmp_path / "data") == {"ours": [EXAMPLE]}
    for whole in ({"benchmark_name": "x", "scenarios": [SCENARIO]}, [SCENARIO]):
        (tmp_path / "benchmark.json").write_text(json.dumps(whole))
        assert v3.load(tmp_path / "data", tmp_path / "benchmark.json") == {"ours": [EXAMPLE]}
    keep(tmp_path / "data", "lost_1", RESULT | {"example_id": "lost"}, "theirs")
    (tmp_path / "benchmark.json").write_text(json.dumps([SCENARIO]))
    assert list(v3.load(tmp_path / "data", tmp_path / "benchmark.json")) == ["ours"]
    assert set(v3.load(tmp_path / "data")) == {"ours", "theirs"}


@pytest.mark.parametrize(
    ("result", "metadata", "told"),
    [
        (RESULT, None, "holds no result_PROVIDER.json of a known scenario"),
        (RESULT, {"domain": "a", "difficulty": "b"}, "the scenario of .* has no “expected_tool_calls”"),
        (RESULT | {"actual_tool_calls": [{"args": {}}]}, SCENARIO, "has no “function”"),
    ],
)
def test_says_what_is_wrong(tmp_path, result, metadata, told):
    keep(tmp_path, result=result, metadata=metadata)
    with pytest.raises(ValueError, match=told):
        v3.load(tmp_path)
    (tmp_path / "benchmark.json").write_text('{"scenarios": {}}')
    with pytest.raises(ValueError, match="has no list of scenarios"):
        v3.load(tmp_path, tmp_path / "benchmark.json")


FLY = ("search_flights", {"to": "London"})
BOOK = ("book_flight", {"who": "Alice"})
CANCEL: v3.Call = ("cancel_flight", {})


@pytest.mark.parametrize(
    ("called", "f1", "arguments", "passes"),
    [
        ([FLY, BOOK], 1.0, 1.0, True),
        ([BOOK, FLY], 1.0, 1.0, True),  # in any order
        ([FLY], 2 / 3, 0.5, False),  # recall 1/2, precision 1
        ([FLY, BOOK, CANCEL], 0.8, 1.0, False),  # recall 1, precision 2/3
        ([FLY, FLY, BOOK], 0.8, 1.0, False),  # what is called twice counts twice
        ([], 0.0, 0.0, False),
        ([("search_flights", {"to": "Paris"}), BOOK], 1.0, 0.5, False),
        ([("search_flights", {}), BOOK], 1.0, 0.5, False),
        ([CANCEL], 0.0, 0.0, False),
    ],
)
def test_a_scenario_passes_with_the_right_tools_and_arguments(called, f1, arguments, passes):
    """The first five and the seventh are the public scripts' own examples, with what they expect of them."""
    found = v3.score(Example("a", (), (FLY, BOOK), tuple(called)))
    assert (found.selection, found.arguments, found.passed) == (pytest.approx(f1), arguments, passes)
    assert found.response is None


def test_nothing_expected_and_nothing_called_is_right():
    assert v3.score(Example("a", (), (), ())).passed
    found = v3.score(Example("a", (), (), (FLY,)))
    assert (found.selection, found.arguments, found.passed) == (0.0, 1.0, False)


@pytest.mark.parametrize(
    ("expected", "made", "same"),
    [
        ({"doc": "driver_license"}, {"doc": " Driver license"}, True),
        ({"id": "$RESULT_0.id"}, {"id": 7}, True),
        ({"id": "$RESULT_0.id"}, {}, False),  # any value, but one
        ({"price": 40}, {"price": 40.0, "more": 1}, True),
        ({"price": 40}, {"price": "40"}, False),
        ({}, {"more": 1}, True),
    ],
)
def test_arguments_are_alike(expected, made, same):
    assert v3.alike(expected, made) is same


def test_calls_of_one_tool_are_compared_in_order():
    wanted = (("f", {"x": 1}), ("f", {"x": 2}))
    assert v3.score(Example("a", (), wanted, wanted)).passed
    assert v3.score(Example("a", (), wanted, wanted[::-1])).arguments == 0.0


def test_a_judge_knows_what_words_mean():
    """What is equal as text is not asked; silence answers nothing, and costs no judge."""
    asked = []

    def answer(messages):
        asked.append(messages[1]["content"])
        return json.dumps({"criteria_met": "2026-08-20" in asked[-1] or "Booked." in asked[-1]})

    made = (("search_flights", {"to": "London", "on": "2026-08-20"}), BOOK)
    wanted = (("search_flights", {"to": "London", "on": "August 20"}), BOOK)
    with model(answer) as url:
        judge = ChatJudge(url, "referee")
        found = v3.score(Example("a", (), wanted, made, "Booked it.", "Booked."), judge)
        assert found.passed and found.response is True and len(asked) == 2
        silent = v3.score(Example("a", (), wanted, wanted, "Booked it.", " "), judge)
        assert silent.passed and silent.response is False and len(asked) == 2
    assert not v3.score(Example("a", (), wanted, made)).passed


def test_figures():
    """By hand, of 20: 12 pass, 4 lack a tool, 2 have a wrong argument, 2 say nothing and call nothing."""

    def example(called, speaks, calls=6.0, **more):
        return Example(
            "a", ("easy",), (FLY, BOOK), called, "", "", user_end_s=5.0, speaks_s=speaks, calls_s=calls, **more
        )

    right = [example((FLY, BOOK), 7.0)] * 10 + [example((FLY, BOOK), 4.0, 4.5)] * 2  # the latter interrupt
    wrong = [example((FLY,), 8.0)] * 4 + [example((FLY, ("book_flight", {"who": "Bob"})), 9.0)] * 2
    silent = [example((), None, None, spoke=False)] * 2
    scores = [v3.score(one) for one in [*right, *wrong, *silent]]
    figures = v3.summarise(scores)
    values = {name: f.value if isinstance(f, Estimate) else f for name, f in figures.items()}
    assert values == pytest.approx(
        {
            "fdb_v3_pass_rate": 12 / 20,
            "fdb_v3_pass_rate_easy": 12 / 20,
            "fdb_v3_tool_selection_f1": (14 + 4 * 2 / 3) / 18,
            "fdb_v3_tool_selection_f1_all": (14 + 4 * 2 / 3) / 20,
            "fdb_v3_argument_accuracy": (12 + 4 * 0.5 + 2 * 0.5) / 18,
            "fdb_v3_argument_accuracy_all": (12 + 4 * 0.5 + 2 * 0.5) / 20,
            "fdb_v3_turn_take_rate": 18 / 20,
            "fdb_v3_interruption_rate": 2 / 18,
            "fdb_v3_response_latency_s": (10 * 2 + 4 * 3 + 2 * 4) / 16,
            "fdb_v3_tool_call_latency_s": 1.0,
            "fdb_v3_wrong_tools_cases": 6,
            "fdb_v3_wrong_arguments_cases": 2,
        }
    )
    assert v3.summarise(scores[:9])["fdb_v3_pass_rate"] == Hidden(9)
