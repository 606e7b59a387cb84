"""Recordings -> store by Apache Beam's embedded runner; without Beam, a sentence. `make test-beam` has Beam."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from configs.inkling_tiny import CONFIG
from tests.data import calls
from tests.data.test_corpora import contents
from tml_jax.data import corpora, pipeline
from tml_jax.data.simulator import Simulator
from tml_jax.data.store import Corpus

ROOT = pathlib.Path(__file__).parents[2]
SPEC, TOKENIZER = CONFIG.model.stream, "checkpoints/inkling_tiny/tokenizer.json"
has_beam = importlib.util.find_spec("apache_beam") is not None
with_beam = pytest.mark.skipif(not has_beam, reason="needs Apache Beam: make test-beam")


def prepare(corpus, out, *flags):
    command = [
        sys.executable,
        "-m",
        "launch.prepare_corpus",
        f"--corpus={corpus}",
        f"--out={out}",
        "--heldout=0.3",
        *flags,
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    simulator = Simulator(CONFIG.data, SPEC, pipeline.open_bank(CONFIG.data.bank), "train")
    return calls.make(tmp_path_factory.mktemp("corpus") / "calls", simulator, SPEC)


@pytest.mark.skipif(has_beam, reason="Beam is here")
def test_without_beam_a_sentence_says_what_to_do(tmp_path):
    done = prepare(tmp_path, tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert re.fullmatch(r"launch\.prepare_corpus: apache-beam is missing; .*make beam.*\.\n", done.stderr)


@with_beam
def test_beam_writes_what_one_process_would(corpus, tmp_path):
    done = prepare(corpus, tmp_path / "beam", "--shards=3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"5 conversations, 0\.0\d hours, in \d shards; 1 left out", done.stdout)
    assert "broken is left out" in done.stderr
    for shard in corpora.shards(corpora.find(corpus), 0.3, 3):
        corpora.write_shard(tmp_path / "alone", *shard, SPEC, TOKENIZER, 10.0)
    assert contents(tmp_path / "beam") == contents(tmp_path / "alone")
    two = "--beam=--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=2"
    done = prepare(corpus, tmp_path / "two", "--shards=3", two)
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "two") == contents(tmp_path / "alone")
    splits = [Corpus(tmp_path / "beam", split, SPEC) for split in corpora.SPLITS]
    assert sum(map(len, splits)) == 5


@with_beam
def test_another_run_makes_only_what_is_new(corpus, tmp_path):
    calls_, out = tmp_path / "calls", tmp_path / "out"
    shutil.copytree(corpus, calls_)
    assert prepare(calls_, out, "--shards=4").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("made_of.json")}
    (calls_ / "broken.flac").unlink()
    gone = next(place for place in before if "broken" in place.read_text())
    assert prepare(calls_, out, "--shards=4").returncode == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("made_of.json")}
    assert {path for path in before if after.get(path) != before[path]} == {gone}
    assert prepare(calls_, out, "--shards=1").returncode == 0
    assert {path.parent.name for path in out.rglob("made_of.json")} == {"00000"}
    assert sum(len(Corpus(out, split, SPEC)) for split in corpora.SPLITS) == 5


@with_beam
def test_a_corpus_of_nothing_useful(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    done = prepare(tmp_path, tmp_path / "out")
    assert done.returncode == 1 and "a is left out" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("launch.prepare_corpus: no recording could be used")
