"""`launch.evaluate` on what was recorded: it needs no model, and gives what the library gives."""

import base64
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.eval.test_full_duplex_bench import said, sample
from tests.eval.test_recorded import EXPECTED, noise
from tml_jax.eval import full_duplex_bench
from tml_jax.eval.recorded import Chunk, Recorded

ROOT = pathlib.Path(__file__).parents[2]


def evaluate(*arguments):
    command = [sys.executable, "-m", "launch.evaluate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_folder_is_scored_suite_by_suite(tmp_path):
    taking = {"turn_taking": [{"timestamp": [2.0, 2.4]}]}
    bench = [sample("turns", taking, said(2.5 + 0.1 * i, 4.0), name=str(i)) for i in range(3)]
    smoke = Recorded("smoke/command/0", noise((0.5, 1.6)), noise((1.8, 2.4)), 6.0, "smoke", "command", EXPECTED)
    for case in (*bench, smoke):
        case.save(tmp_path)
    out = tmp_path / "figures.json"
    ended = evaluate("--suite=full_duplex_bench", f"--target=folder:{tmp_path}", f"--json={out}")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(out.read_text()) == full_duplex_bench.summarise(bench)
    assert "turns_latency_s" in ended.stdout
    ended = evaluate("--suite=smoke", f"--target=folder:{tmp_path}", f"--json={out}")
    figures = json.loads(out.read_text())
    assert figures["answer_cases"] == 1 and figures["answer_in_time"] == 1.0 and figures["hesitation_cases"] == 1
    assert not [name for name in figures if name.startswith("panel_")], "one event is too few to tell"


def commands(folder, cases=12):
    """Answered 0.2 s after the request and later from case to case, the last one not at all; saved in `folder`."""
    for i in range(cases):
        heard = noise((1.8 + 0.02 * i, 2.4)) if i < cases - 1 else noise()
        Recorded(f"smoke/command/{i}", noise((0.5, 1.6)), heard, 6.0, "smoke", "command", EXPECTED).save(folder)


def test_the_report_has_the_figures_and_cases_to_hear(tmp_path):
    commands(tmp_path / "run")
    page, out = tmp_path / "page.html", tmp_path / "figures.json"
    ended = evaluate(f"--target=folder:{tmp_path / 'run'}", f"--report={page}", f"--json={out}")
    assert ended.returncode == 0, ended.stderr
    figures, text = json.loads(out.read_text()), page.read_text()
    name = "panel_turn_taking_latency_median_s"
    value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
    told = f'{value:.2f} s <span class="interval">[{low:.2f}, {high:.2f}] of 11</span>'
    assert text.count(told) == 2, "once among the figures, once beside the published one"
    assert "not comparable: that would need its recordings" in text
    assert 'at least 96.0 %: <span class="missed">missed</span>' in text
    shown = re.findall(r"<strong>(\w+)</strong>: (smoke/command/\d+)", text)
    assert shown == [("best", "smoke/command/0"), ("median", "smoke/command/6"), ("worst", "smoke/command/11")]
    sounds = re.findall(r'src="data:audio/ogg;base64,([^"]+)"', text)
    heard = [soundfile.read(io.BytesIO(base64.b64decode(sound)))[0] for sound in sounds]
    loud = [np.abs(sound).max(axis=0) > 0.1 for sound in heard]
    assert np.array(loud).tolist() == [[True, True], [True, True], [True, False]]
    assert text.count(">expected</text>") == 3


def test_all_of_a_folder_is_one_table_over_its_suites(tmp_path):
    commands(tmp_path / "run")
    for i in range(10):
        quiet = Recorded(f"overheard/{i}", noise((0.5, 1.5)), noise((3.0, 4.0)), 6.0, "overheard", "talk")
        quiet.save(tmp_path / "run")
    page, out = tmp_path / "page.html", tmp_path / "figures.json"
    ended = evaluate("--suite=all", f"--target=folder:{tmp_path / 'run'}", f"--report={page}", f"--json={out}")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(out.read_text())
    assert list(told) == ["table", "smoke", "overheard"], "suites of which nothing was recorded are left out"
    table = {row["name"]: row for row in told["table"]}
    latency = table["turn-taking latency, median"]
    assert latency["value"] == told["smoke"]["panel_turn_taking_latency_median_s"] and latency["value_events"] == 11
    overheard = table["false speech a minute: talk of recorded people"]
    assert (
        overheard["value"] == 10.0
        and overheard["met"] is False
        and "value" not in table["visual cue: said within 0.6 s"]
    )
    shown = rf"turn-taking latency, median +{latency['value']:.2f} s .* 11 +at most 0\.30 s +(met|MISSED)\n"
    assert re.search(shown, ended.stdout)
    assert re.search(r"visual cue: said within 0\.6 s +not measured +at least 90\.0 % +needs `smoke`", ended.stdout)
    text = page.read_text()
    assert [text.count(f"<h2>{name}</h2>") for name in ("What it is to show", "smoke", "overheard", "load")] == [
        1,
        1,
        1,
        0,
    ]
    assert text.count("<audio") == 6, "best, median and worst of both suites"


def test_other_suites_report_what_they_score(tmp_path):
    page = tmp_path / "page.html"
    taking = {"turn_taking": [{"timestamp": [2.0, 2.4]}]}
    for i in range(3):
        sample("turns", taking, said(2.5 + 0.1 * i, 4.0), name=str(i)).save(tmp_path / "bench")
    sample("pauses", {"pause": []}, said(2.0, 4.0), name="late").save(tmp_path / "bench")
    ended = evaluate("--suite=full_duplex_bench", f"--target=folder:{tmp_path / 'bench'}", f"--report={page}")
    assert ended.returncode == 0, ended.stderr
    text = page.read_text()
    assert "<strong>best</strong>: turns/0" in text and "<strong>worst</strong>: pauses/late" in text
    assert "takes the turn: met" in text and "leaves the turn to the user: missed" in text
    overlap = {"metadata": {"context_text": "", "current_turn_text": "yeah", "timestamps": [3.0, 4.0]}}
    for name, times in (("on", (1.0, 4.5)), ("off", (1.0,))):
        for prefix, spoken in (("clean_", (1.0, 4.5)), ("", times)):
            words = said(*spoken, text="one")
            sample("user_backchannel", overlap, words, name=name, prefix=prefix).save(tmp_path / "overlaps")
    ended = evaluate("--suite=full_duplex_bench", f"--target=folder:{tmp_path / 'overlaps'}", f"--report={page}")
    assert ended.returncode == 0, ended.stderr
    text = page.read_text()
    assert (
        "<strong>best</strong>: user_backchannel/on" in text and "<strong>worst</strong>: user_backchannel/off" in text
    )
    assert "speaks through what is said over it; C_RESUME: met" in text and "C_UNKNOWN: missed" in text
    for name, output in (("quiet", noise()), ("loud", noise((3.0, 4.0)))):
        Recorded(f"talk/{name}", noise((0.5, 1.5), (2.5, 4.5)), output, 6.0, "overheard").save(tmp_path / "talk")
    ended = evaluate("--suite=overheard", f"--target=folder:{tmp_path / 'talk'}", f"--report={page}")
    assert ended.returncode == 0, ended.stderr
    text = page.read_text()
    assert "<strong>best</strong>: talk/quiet. 2 of 2 met" in text
    assert "<strong>worst</strong>: talk/loud. 1 of 2 met" in text
    assert '5.00</td><td class="number">at most 0.50: <span class="missed">missed' in text


def counted(folder, name, *words):
    chunks = [Chunk(word, 1.0 + i, 1.3 + i) for i, word in enumerate(words)]
    Recorded(name, noise((0.5, 1.6)), noise((1.8, 2.4)), 6.0, "repcount", chunks=chunks).save(folder)


def test_published_annotations_score_recordings_by_their_names(tmp_path):
    data, page, out = tmp_path / "test.csv", tmp_path / "page.html", tmp_path / "figures.json"
    rows = [f"{i},situp,stu{i}.mp4,{3 if i < 6 else 9}" for i in range(12)]
    data.write_text("\n".join([",type,name,count", *rows, "12,situp,unseen.mp4,3"]) + "\n")
    for i in range(12):
        counted(tmp_path / "run", f"repcount/stu{i}" + ".mp4" * (i % 2), "one", "two", "three")
    counted(tmp_path / "run", "repcount/of_no_case", "one")
    arguments = ("--suite=repcount", f"--data={data}", f"--report={page}", f"--json={out}")
    ended = evaluate(*arguments, f"--target=folder:{tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(out.read_text())
    assert (figures["repcount_off_by_one"], figures["repcount_off_by_one_events"]) == (0.5, 12)
    assert (figures["recorded_cases"], figures["missing_cases"]) == (12, 1)
    text = page.read_text()
    assert "not comparable: that would need its test videos, played live" in text
    # By the error: 0 of the six with 3, 6 / 9.1 of the others; of equal ones the first that was read.
    shown = re.findall(r"<strong>(\w+)</strong>: ([\w/]+)(?:\.mp4)?\. (\d of 1 met)", text)
    assert shown == [
        ("best", "repcount/stu0", "1 of 1 met"),
        ("median", "repcount/stu10", "0 of 1 met"),
        ("worst", "repcount/stu9", "0 of 1 met"),
    ]
    assert "counts to 9; the last number said is 3: missed" in text and "<audio" in text


@pytest.mark.slow
def test_own_data_is_played_kept_and_scored_again(tmp_path):
    """By the shipped model: what was kept gives the figures of the run, and holds what another system needs."""
    arguments = ("--suite=proactive", f"--json={tmp_path / 'figures.json'}")
    ended = evaluate(*arguments, "--conversations=2", f"--out={tmp_path / 'run'}", f"--report={tmp_path / 'page.html'}")
    assert ended.returncode == 0 and "comparable with a published one" in ended.stdout, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["recorded_cases"] == 4 and figures["missing_cases"] == 0
    kept = {path.name for path in (tmp_path / "run" / "proactive" / "count-0").iterdir()}
    assert kept >= {"input.wav", "input.mp4", "output.wav", "output.json", "session.jsonl"}
    assert "own data, drawn by --seed" in (tmp_path / "page.html").read_text()
    for data in ([], [f"--data={tmp_path / 'run' / 'proactive' / 'anno.json'}"]):
        assert evaluate(*arguments, f"--target=folder:{tmp_path / 'run'}", *data).returncode == 0
        assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_a_suite_of_recordings_says_what_it_needs(tmp_path):
    data = tmp_path / "test.csv"
    data.write_text("type,name,count\nsitup,a.mp4,3\n")
    counted(tmp_path, "run/a", "one")
    for arguments, told in (
        (
            ["--target=grpc:127.0.0.1:1", f"--data={data}"],
            "needs recordings, --target=folder:DIR, where there is --data",
        ),
        ([f"--target=folder:{tmp_path}"], "needs the annotations of what was recorded: --data=FILE"),
    ):
        ended = evaluate("--suite=repcount", *arguments)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert f"The suite `repcount` {told}" in ended.stderr


def test_what_a_system_left_behind_is_scored_without_its_sound(tmp_path):
    """Full-Duplex-Bench v3: of two providers in the same folders each has its figures, by the calls alone."""
    call = {"function": "track_order", "args": {"order_id": "X1"}}
    scenario = {"domain": "ecommerce_support", "difficulty": "easy", "expected_tool_calls": [call]}
    for i in range(10):
        folder = tmp_path / "run" / f"ecommerce_{i}"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps(scenario))
        for provider, calls in (("good", [call]), ("bad", [call, call])):
            result = {"example_id": f"ecommerce_{i}", "actual_tool_calls": calls, "transcript": "done"}
            (folder / f"result_{provider}.json").write_text(json.dumps(result))
    page, out = tmp_path / "page.html", tmp_path / "figures.json"
    arguments = ("--suite=full_duplex_bench_v3", f"--json={out}", f"--report={page}")
    ended = evaluate(*arguments, f"--target=folder:{tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(out.read_text())
    assert (figures["good_fdb_v3_pass_rate"], figures["bad_fdb_v3_pass_rate"]) == (1.0, 0.0)
    for path in (tmp_path / "run").glob("*/result_bad.json"):
        path.unlink()
    assert evaluate(*arguments, f"--target=folder:{tmp_path / 'run'}").returncode == 0
    assert json.loads(out.read_text())["fdb_v3_pass_rate"] == 1.0
    text = page.read_text()
    assert '68.0 %</td><td class="number">100.0 %' in text and "not comparable: that would need its clips" in text
    assert "equal text (offline substitute)" in text
    for suite in ("full_duplex_bench_v2", "full_duplex_bench_v3"):
        ended = evaluate(f"--suite={suite}", "--target=grpc:127.0.0.1:1")
        assert ended.returncode == 1 and "scores what a system left behind: --target=folder:DIR" in ended.stderr


def test_who_judged_is_told_and_words_judge_no_rubric(tmp_path):
    data, page = tmp_path / "cases.jsonl", tmp_path / "page.html"
    case = {"id": "a", "category": "once", "expect": [{"say": ["one"], "from": 1, "to": 2}]}
    data.write_text(json.dumps(case | {"axis": "x", "rubric": ["counts"], "user_turn_1_transcript": "count"}))
    Recorded("a", noise(), noise(), 6.0, chunks=[Chunk("one", 1.0, 1.3)]).save(tmp_path / "run")
    arguments = (f"--target=folder:{tmp_path / 'run'}", f"--data={data}", f"--report={page}")
    ended = evaluate("--suite=timed_speech", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "<dt>judge</dt><dd>words in common (offline substitute)</dd>" in page.read_text()
    ended = evaluate("--suite=audio_multichallenge", *arguments)
    assert ended.returncode == 1 and "A rubric is judged by a chat model" in ended.stderr
    ended = evaluate("--suite=timed_speech", "--judge=model", *arguments)
    assert ended.returncode == 1 and "A judge is BASE_URL,MODEL, not 'model'." in ended.stderr


def test_what_does_not_go_is_one_sentence(tmp_path):
    ended = evaluate(f"--target=folder:{tmp_path}")
    assert ended.returncode == 1 and "no recorded case" in ended.stderr and "Traceback" not in ended.stderr
    ended = evaluate(f"--target=folder:{tmp_path}", f"--out={tmp_path}")
    assert ended.returncode == 2 and "--out" in ended.stderr and "Traceback" not in ended.stderr
    ended = evaluate("--suite=overheard")
    assert (
        ended.returncode == 1
        and "The suite `overheard` needs recordings of people: --recordings=FOLDER." in ended.stderr
    )
    ended = evaluate("--target=nothing")
    assert ended.returncode == 1 and "checkpoint:PATH, grpc:HOST:PORT or folder:DIR" in ended.stderr
