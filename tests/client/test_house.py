"""The client stands alone."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import tml_jax.client
for module in pkgutil.iter_modules(tml_jax.client.__path__, "tml_jax.client."):
    importlib.import_module(module.name)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax"}))
print(*sorted({".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("tml_jax.")}))
"""


def test_the_client_imports_neither_the_engine_nor_jax() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    frameworks, rooms = done.stdout.split("\n")[:2]
    assert frameworks == ""
    assert rooms.split() == ["tml_jax.client", "tml_jax.streams", "tml_jax.wire"]
