"""The wire format: linted, documented, and compiled from the file itself."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest

from tml_jax.wire import protos

BUF = pathlib.Path(sysconfig.get_path("scripts")) / "buf"


def lint(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, "lint"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_proto_lints_clean() -> None:
    result = lint(protos.ROOT)
    assert result.returncode == 0, result.stdout


def test_the_linter_would_see_a_mistake_and_a_missing_comment(tmp_path: pathlib.Path) -> None:
    shutil.copytree(protos.ROOT, tmp_path / "proto")
    path = tmp_path / "proto" / protos.FILE
    path.write_text(path.read_text() + "\nmessage Undocumented { string BadName = 1; }\n")
    result = lint(tmp_path / "proto")
    assert result.returncode != 0
    assert "BadName" in result.stdout and "Undocumented" in result.stdout


def test_the_classes_are_those_of_the_file() -> None:
    request = protos.ConverseRequest(text=protos.TextInput(text="hello"))
    assert protos.ConverseRequest.FromString(request.SerializeToString()).text.text == "hello"
    assert protos.Decision.DECISION_DELEGATE == 3
    with pytest.raises(AttributeError, match="declares no 'Nonsense'"):
        _ = protos.Nonsense
