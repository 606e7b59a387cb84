"""What every launch command does with its command line."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from launch import cli

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if p.stem not in ("__init__", "cli", "reach"))


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs `main` behind the flags of this test only; returns its exit status, stdout and stderr."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    flags.DEFINE_integer("steps", None, "Steps.", lower_bound=1, flag_values=values)

    def run(*arguments, main=lambda argv: None):
        monkeypatch.setattr(sys, "argv", ["launch/some.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli._guarded(main, cli._parse(sys.argv))
            sys.exit(0)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort", "--helpfull"])
def test_help_is_a_success(start, flag):
    status, out, err = start(flag, "--steps=0")
    assert status == 0 and out and not err


def test_version(start):
    assert start("--version") == (0, f"tml_jax {importlib.metadata.version('tml_jax')}\n", "")


@pytest.mark.parametrize("argument", ["--stepz=1", "--steps=0", "--steps=-1", "--steps=x", "--steps", "stray"])
def test_a_wrong_command_line_is_one_sentence(start, argument):
    status, out, err = start(argument)
    assert status == 2 and not out
    assert err.startswith("launch.some: ") and err.count("\n") == 1
    assert argument.strip("-").partition("=")[0] in err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("The bank is empty."), "The bank is empty."),
        (
            FileNotFoundError(2, "No such file or directory", "bank/index.json"),
            "bank/index.json: No such file or directory.",
        ),
        (OSError("no route"), "no route"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(start, error, sentence):
    assert start(main=raising(error)) == (1, "", f"launch.some: {sentence}\n")


def test_a_fault_of_the_program_keeps_its_traceback(start):
    with pytest.raises(KeyError):
        cli._guarded(raising(KeyError("x")), ["some"])


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for good in (None, "gs://bucket/x", str(tmp_path), str(tmp_path / "new" / "deep")):
        assert cli._check_folder(good)
    for good in (None, "gs://bucket/x", str(tmp_path / "file"), str(tmp_path / "new.json"), "new.json"):
        assert cli._check_file(good)
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(flags.ValidationError, match="is a file"):
            cli._check_folder(str(bad))
    for bad in (tmp_path, tmp_path / "none" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(flags.ValidationError):
            cli._check_file(str(bad))


def test_outputs_that_must_not_be_written(tmp_path, monkeypatch):
    # Permissions do not bind root, as whom tests may run.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check, path in ((cli._check_folder, tmp_path / "new"), (cli._check_file, tmp_path / "new.json")):
        with pytest.raises(flags.ValidationError, match="must not be written"):
            check(str(path))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_with_the_wrapper(command):
    source = (ROOT / "launch" / f"{command}.py").read_text()
    assert "cli.run(main" in source and "app.run(" not in source


def test_a_flag_has_one_type_everywhere():
    kinds = {}
    define = re.compile(r'(?:flags\.DEFINE_(\w+)|cli\.out_\w+)\(\s*"(\w+)"')
    for command in COMMANDS:
        for plain, name in define.findall((ROOT / "launch" / f"{command}.py").read_text()):
            kinds.setdefault(name, set()).add(plain or "string")
    assert kinds["steps"] == {"integer"}
    assert not {name: found for name, found in kinds.items() if len(found) > 1}


def test_a_real_command():
    done = subprocess.run(
        [sys.executable, "-m", "launch.build_tokenizer", "--out=README.md/x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "there is no folder README.md" in done.stderr
