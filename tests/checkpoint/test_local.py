"""The tier of checkpoints on each host's own disk, with two real processes."""

import os
import socket
import subprocess
import sys
import textwrap

PROGRAM = """
    import os, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from tml_jax import sharding
    from tml_jax.checkpoint.local import LocalCheckpoints

    address, process, disk = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, 2, process)

    def state(step, axes=("data", "fsdp")):
        mesh = sharding.make_mesh((2, 2, 1, 1))
        make = lambda: {"w": step + jnp.arange(48.0).reshape(8, 6), "step": jnp.int32(step), "one": {"b": jnp.ones(3)}}
        cut = NamedSharding(mesh, P(axes)), NamedSharding(mesh, P())
        return jax.jit(make, out_shardings={"w": cut[0], "step": cut[1], "one": {"b": cut[1]}})()

    abstract = lambda x: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), x)
    disks = LocalCheckpoints(disk, {"name": "run"})
    assert disks.newest(abstract(state(0))) is None
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    for step in (3, 4, 5):
        now = state(step)
        disks.save(step, now, {"elapsed_s": step})
        add(now)  # takes over the memory
    if process == 1:  # as if it had been killed before it wrote the last one
        disks.finish()
        os.remove(f"{disk}/1/5.safetensors")
    disks.finish()
    wanted = state(4)
    assert disks.newest(abstract(wanted)) == 4
    found, data = disks.restore(abstract(wanted), 4)
    assert data == {"elapsed_s": 4}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.sharding == b.sharding
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(x.data, y.data)
    # Otherwise cut, another run, and a file of which one process has only a piece: of no use to any.
    assert disks.newest(abstract(state(4, ("data",)))) is None
    assert LocalCheckpoints(disk, {"name": "other"}).newest(abstract(wanted)) is None
    if process == 0:
        with open(f"{disk}/0/4.safetensors", "r+b") as file:
            file.truncate(100)
    assert disks.newest(abstract(wanted)) is None
    print("done")
"""


def test_the_newest_state_that_every_process_has_whole_is_what_a_run_goes_on_from(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, str(program), address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    disk = str(tmp_path / "disk")
    started = [subprocess.Popen([*command, str(i), disk], env=env, **pipes) for i in range(2)]
    try:
        for said in [process.communicate(timeout=120)[0] for process in started]:
            assert said.endswith("done\n"), said[-3000:]
    finally:
        for process in started:
            process.kill()
