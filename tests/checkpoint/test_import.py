"""A checkpoint of six shards on its way in and out: what is in memory, what a kill leaves, what comes out again."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.checkpoint.published import publish, tensors
from tests.model import tiny
from tml_jax.checkpoint import convert, orbax, store, weights
from tml_jax.checkpoint.source import open_source
from tml_jax.checkpoint.tensors import TensorFiles
from tml_jax.checkpoint.weights import flatten
from tml_jax.model.interaction import InteractionModel

LAYERS = {"layer_types": ("hybrid_sliding", "hybrid") * 3, "mlp_layer_types": ("sparse",) * 6}
CONFIG = tiny.config(**LAYERS)
WRITERS = {"orbax": convert.to_orbax, "saved": convert.to_saved_model, "published": convert.to_published}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "hf"
    publish(directory, CONFIG, heads=True)
    (directory / "tokenizer.json").write_text(tiny.tokenizer_json())
    return directory


def assert_same_model(found, wanted):
    """Equal in every bit, whatever the layouts."""
    found, wanted = open_source(found), open_source(wanted)
    assert found.config == wanted.config and found.weights.keys() == wanted.weights.keys()
    for path, weight in wanted.weights.items():
        other = found.weights[path]
        assert other.dtype == weight.dtype and other.shape == weight.shape, path
        assert np.asarray(other[()]).tobytes() == np.asarray(weight[()]).tobytes(), path


def test_every_layout_becomes_every_other_bit_for_bit(published, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_BYTES", 4000)
    source = published
    for number, layout in enumerate(("orbax", "saved", "orbax", "published")):
        WRITERS[layout](source, tmp_path / str(number))
        source = tmp_path / str(number)
        assert open_source(source).layout == layout
        assert_same_model(source, published)
        assert (source / "tokenizer.json").read_text() == (published / "tokenizer.json").read_text()
    assert tensors(source) == tensors(published)
    assert json.loads((source / "config.json").read_text()) == json.loads((published / "config.json").read_text())


def test_blocks_follow_one_another_and_are_small(monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_BYTES", 60)
    x = np.arange(3 * 5 * 7).reshape(3, 5, 7).astype(np.float32)
    for whole in ((), (0,), (1,), (2,), (1, 2)):
        parts = [x[index] for index in weights.blocks(x.shape, 4, whole)]
        np.testing.assert_array_equal(np.concatenate([part.ravel() for part in parts]), x.ravel())
        assert all(part.shape[axis] == x.shape[axis] for part in parts for axis in whole)
        assert len(parts) == {(): 9, (0,): 1, (1,): 3, (2,): 9, (1, 2): 3}[whole]
    part = weights.read(x, (slice(1, 3), slice(None), slice(2, 6)), np.empty(0, np.float64))
    np.testing.assert_array_equal(part, x[1:3, :, 2:6])
    assert part.dtype == np.float64 and part.flags.owndata


def test_orbax_itself_restores_what_was_converted(published, tmp_path):
    convert.to_orbax(published, tmp_path / "orbax")
    model = InteractionModel(CONFIG)
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((tmp_path / "orbax" / "weights").absolute(), model.abstract)
    for path, weight in open_source(published).weights.items():
        np.testing.assert_array_equal(flatten(params)[path], np.asarray(weight[()]).astype(np.float32), err_msg=path)


def test_a_damaged_block_is_noticed_and_named(published, tmp_path):
    convert.to_orbax(published, tmp_path / "orbax")
    block = tmp_path / "orbax" / "weights" / "transformer.unembed" / "c" / "0" / "0"
    data = bytearray(block.read_bytes())
    data[100] ^= 1
    block.write_bytes(data)
    with pytest.raises(ValueError, match=r"orbax/weights is damaged: transformer.unembed cannot be read\.$"):
        convert.to_saved_model(tmp_path / "orbax", tmp_path / "saved")
    # It is written again where the conversion goes on.
    orbax.write_arrays(tmp_path / "orbax" / "weights", open_source(published).weights)
    assert_same_model(tmp_path / "orbax", published)


def slowly(layout, source, target):
    """Converts in small blocks from a slow disk, until it is killed."""
    read = TensorFiles.__getitem__

    def wait(self, name):
        time.sleep(0.002)
        return read(self, name)

    TensorFiles.__getitem__ = wait
    weights.BLOCK_BYTES = 4000
    WRITERS[layout](source, target, **({} if layout == "orbax" else {"max_shard_bytes": 30_000}))


def size(directory):
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed just now
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def killed(layout, source, target, kills):
    """Converts, killed at random points; `kills` times it was in the midst of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.checkpoint.test_import"])
    rng = random.Random(layout)
    whole = sum(spec.nbytes for spec in map(TensorFiles(source).spec, TensorFiles(source)))
    for point in sorted(rng.uniform(0.0, 0.9) for _ in range(kills)):
        process = context.Process(target=slowly, args=(layout, source, target))
        process.start()
        while size(target) < point * whole and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was over before it was killed"
        with pytest.raises(ValueError, match="holds no model"):
            open_source(target)
    process = context.Process(target=slowly, args=(layout, source, target))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(target.rglob("*.partial")) and not (target / "unfinished_conversion.json").exists()
    assert_same_model(target, source)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_killed_conversion_goes_on(published, tmp_path, layout):
    killed(layout, published, tmp_path / "to", kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("layout", WRITERS)
def test_a_conversion_killed_at_twenty_points_finishes(published, tmp_path, layout):
    killed(layout, published, tmp_path / "to", kills=20)


def test_what_is_there_is_kept_and_another_conversion_is_refused(published, tmp_path, monkeypatch):
    target = tmp_path / "to"
    with monkeypatch.context() as patch:
        patch.setattr(store, "copy_tokenizer", shutil.disk_usage)  # takes one argument, not two
        with pytest.raises(TypeError):
            convert.to_saved_model(published, target, max_shard_bytes=30_000)
    before = {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    assert len(before) > 3
    for other in ({"dtype": "float32"}, {"seed": 1}, {}):
        with pytest.raises(ValueError, match="to is not empty; name a new directory"):
            convert.to_saved_model(published, target, **other)
    convert.to_saved_model(published, target, max_shard_bytes=30_000)
    assert {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")} == before
    assert_same_model(target, published)


MEMORY = """
import ctypes, json, pathlib, sys
import jax
from tests.checkpoint.published import publish
from tests.checkpoint.test_import import LAYERS, WRITERS
from tests.model import tiny
from tml_jax import sharding
from tml_jax.checkpoint.source import open_source
from tml_jax.checkpoint.weights import place_params
from tml_jax.model.interaction import InteractionModel

root = pathlib.Path(sys.argv[1])
large = tiny.config(hidden_size=256, moe_intermediate_size=512, n_routed_experts=64, **LAYERS)
for name, config in (("small", tiny.config()), ("large", large)):
    publish(root / name, config, heads=True)
sizes = [path.stat().st_size for path in (root / "large").glob("*.safetensors")]

def status(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name + ":")).split()[1])

def place(source, target):
    global params
    source = open_source(source)
    model, mesh = InteractionModel(source.config), sharding.make_mesh((1, 2, 4, 1))
    params = place_params(model, source.weights, sharding.shardings(model.axes, model.abstract, mesh))
    return sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)

found = {}
for name, write in (WRITERS | {"placed": place}).items():
    write(root / "small", root / name / "small")  # what is compiled and imported is there
    params = None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed doesn't count as held before
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    held = write(root / "large", root / name / "large")
    found[name] = (status("VmHWM") - before - (held if isinstance(held, int) else 0)) / max(sizes)
print(json.dumps({"shards": len(sizes), "all": sum(sizes) / max(sizes), "found": found}))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_no_more_than_a_shard_is_in_memory(tmp_path):
    """The largest memory of a process beyond what it had, and beyond the arrays that it places; in shards.

    malloc keeps freed blocks of less than 32 MiB for later, those of a real model not: here it is to keep none.
    """
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "MALLOC_MMAP_THRESHOLD_": "131072"}
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["shards"] == 6 and measured["all"] > 4
    found = measured["found"].values()
    assert len(found) == 4 and min(found) > 0 and max(found) <= 1, measured


@pytest.mark.slow
@pytest.mark.parametrize("layout", WRITERS)
def test_processes_share_a_conversion(published, tmp_path, layout):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "launch.convert", f"--from={published}", f"--to={tmp_path / 'to'}"]
    command += [f"--layout={layout}", f"--coordinator_address={address}", "--num_processes=2", "--max_shard_gb=3e-5"]
    processes = [subprocess.Popen([*command, f"--process_id={i}"]) for i in range(2)]
    assert [process.wait(200) for process in processes] == [0, 0]
    assert_same_model(tmp_path / "to", published)


def test_a_checkpoint_in_float32_reads_in_the_dtype_that_is_asked_for(published, tmp_path):
    convert.to_orbax(published, tmp_path / "wide", dtype="float32")
    convert.to_published(tmp_path / "wide", tmp_path / "narrow", dtype="bfloat16")
    wide, narrow = (open_source(tmp_path / name).weights for name in ("wide", "narrow"))
    for path, weight in open_source(published).weights.items():
        assert wide[path].dtype == np.float32 and narrow[path].dtype in (np.float32, jnp.bfloat16)
        for found in (wide, narrow):
            np.testing.assert_array_equal(np.asarray(found[path][()], np.float32), np.asarray(weight[()], np.float32))
    with pytest.raises(ValueError, match="stored as int8 in saved models alone"):
        convert.to_orbax(published, tmp_path / "int8", dtype="int8")
    assert not (tmp_path / "int8").exists()
