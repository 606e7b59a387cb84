"""launch.demo's flags are those of the other commands, and what is wrong with them is one sentence."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--checkpoint=nothing"], "nothing holds no model: it has no config.json."),
        (["--bank=nothing"], "There is no speech bank at nothing"),
        (["--seed=-1"], "flag --seed=-1: "),
    ],
)
def test_a_wrong_flag_is_told_before_a_server_starts(tmp_path: pathlib.Path, flags: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "launch.demo", f"--out={tmp_path / 'out'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode and sentence in done.stderr
    assert "Traceback" not in done.stderr and "Starting" not in done.stdout
