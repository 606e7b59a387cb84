"""A script on eight CPU devices, in a process of its own: how many there are is fixed once JAX has begun."""

import json
import os
import subprocess
import sys
from typing import Any


def run(script: str) -> Any:
    """What the script prints last, as JSON."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "NPROC": "32",  # threads: a device that is in two collectives at once mustn't take another's
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the arithmetic is the same; compiling takes half as long
    }
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
