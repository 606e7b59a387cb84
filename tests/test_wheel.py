"""What `pip install` of a built wheel gives is whole: it serves, far from any checkout."""

import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.test_repo import ROOT, tracked

PROGRAM = """
import asyncio, sys
import launch.serve, tml_jax
from tml_jax import client
from tml_jax.serve import subprocess_server

async def talk(address):
    async with client.connect(address) as channel:
        return await client.converse(channel, client.Script(None, texts=[(0.0, "hello")], tail_s=0.4), real_time=False)

with subprocess_server.run(sys.argv[1], ["--faster_than_real_time", "--slots=1"]) as address:
    recording = asyncio.run(talk(address))
print(tml_jax.__path__[0], recording.events[-1]["type"])
"""


@pytest.mark.slow
def test_a_wheel_serves(tmp_path: pathlib.Path) -> None:
    for path in tracked():
        if ROOT / "checkpoints" not in path.parents:
            copy = tmp_path / "source" / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build: list = ["wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path / "source"]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "venv"
    venv.create(home)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    # The dependencies, but not this checkout, which its own environment finds by a hook that is not read here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    page = pathlib.Path("tml_jax", "serve", "page")
    assert {path.name for path in (site / page).iterdir()} == {path.name for path in (ROOT / page).iterdir()}
    arguments = ["-c", PROGRAM, str(ROOT / "checkpoints" / "inkling_tiny")]
    done = subprocess.run([python, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == [str(site / "tml_jax"), "end"]
