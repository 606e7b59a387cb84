"""`launch.evaluate` on what was recorded: it needs no model, and gives what the library gives."""

import json
import pathlib
import subprocess
import sys

from tests.eval.test_full_duplex_bench import said, sample
from tests.eval.test_recorded import EXPECTED, noise
from tml_jax.eval import full_duplex_bench
from tml_jax.eval.recorded import Recorded

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


def test_what_does_not_go_is_one_sentence(tmp_path):
    ended = evaluate(f"--target=folder:{tmp_path}")
    assert ended.returncode == 1 and "no recorded case" in ended.stderr and "Traceback" not in ended.stderr
    ended = evaluate(f"--target=folder:{tmp_path}", f"--out={tmp_path}")
    assert ended.returncode == 2 and "--out" in ended.stderr and "Traceback" not in ended.stderr
    ended = evaluate("--target=nothing")
    assert ended.returncode == 1 and "checkpoint:PATH, grpc:HOST:PORT or folder:DIR" in ended.stderr
