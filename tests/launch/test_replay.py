"""launch.replay: what it says of a recording that launch.serve has made, and of what is none."""

import asyncio
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.serve import test_launch
from tests.serve.conftest import bursts, talk
from tests.serve.test_recording import changed, flip
from tml_jax import client
from tml_jax.serve import subprocess_server

checkpoint = test_launch.checkpoint  # a fixture
FILES = {"conversation.wav", "session.jsonl", "trace.json"}


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def recording(checkpoint: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("recordings")
    with subprocess_server.run(str(checkpoint), [f"--record_dir={folder}", "--slots=2"]) as address:
        script = client.Script(bursts(1.0, seed=1), texts=[(0.3, "seven")], tail_s=0.2)
        name = asyncio.run(talk(address, script, real_time=True)).session_id
    return folder / name


def test_a_served_conversation_is_exported_and_replayed(checkpoint, recording, tmp_path) -> None:
    done = replay("--recording", recording, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    exported, same = done.stdout.splitlines()
    count = exported.split()[0]
    assert exported == f"{count} micro-turns are in {tmp_path / 'out'}." and int(count) >= 5
    assert same == f"{count} of {count} micro-turns are the same bits."
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_another_model_is_refused_by_what_differs(checkpoint, recording, tmp_path) -> None:
    done = replay("--recording", recording, "--checkpoint", checkpoint, "--out", tmp_path, "--dtype=bfloat16")
    assert done.returncode == 1
    sentence = "and not with model as it is here: config dtype is float32 there and bfloat16 here."
    assert done.stderr.strip() == f"launch.replay: This recording was made with the model model, {sentence}"
    assert {path.name for path in tmp_path.iterdir()} == FILES, "it is exported all the same"


def test_what_differs_is_told(checkpoint, recording, tmp_path) -> None:
    shutil.copytree(recording, tmp_path / "changed")
    changed(tmp_path / "changed", 3, flip("heard"))
    done = replay("--recording", tmp_path / "changed", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    count = done.stdout.split()[0]
    sentence = f"Micro-turn 3 differs in the words heard; of {count} the 3 before it are the same bits."
    assert (done.returncode, done.stderr.strip()) == (1, sentence)


def test_what_is_no_recording_is_told(recording, tmp_path) -> None:
    for folder in (tmp_path / "nothing", recording.parent):
        done = replay("--recording", folder, "--out", tmp_path / "out")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"launch.replay: There is no recording in {folder}: give a session's folder, ")
    assert not (tmp_path / "out").exists()
    without = replay()
    assert without.returncode == 2 and "--recording" in without.stderr and without.stderr.count("\n") == 1
