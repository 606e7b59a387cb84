"""What holds for the repository as a whole: its size, its house, its pins."""

import ast
import pathlib
import re
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MIB = 1 << 20
# Floors from the top down: a module imports from its own floor and from floors below it. The rooms of one floor
# don't know each other.
FLOORS = (
    ("tests",),
    ("launch", "configs"),
    ("tml_jax.eval",),
    ("tml_jax.serve",),
    ("tml_jax.train",),
    ("tml_jax.data",),
    ("tml_jax.checkpoint",),
    ("tml_jax.model",),
    ("tml_jax.streams", "tml_jax.sharding"),
    ("pallas_kernels",),
)
# An experiment file is typed by what it configures, and launch runs experiments.
FREE = {("launch", "configs")}


def tracked():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [p for p in paths if p.is_file()]


def text(path):
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def room(module):
    """The floor and the room of a module, or None where it isn't ours."""
    for number, rooms in enumerate(FLOORS):
        for name in rooms:
            if module == name or module.startswith(name + "."):
                return number, name
    return None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} imports relatively"
            # `from tml_jax import sharding` names a room by its last word.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources():
    return [p for p in tracked() if p.suffix == ".py" and not p.name.endswith(("_pb2.py", "_pb2_grpc.py"))]


def test_imports_go_down_the_house():
    wrong = []
    for path in sources():
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if here is None:
            continue
        for module in imports(path):
            there = room(module)
            if there is None or there[1] == here[1] or (here[1], there[1]) in FREE:
                continue
            if there[0] <= here[0]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_files_are_small():
    checkpoints = ROOT / "checkpoints"
    big = [p for p in tracked() if p.stat().st_size > 4 * MIB and checkpoints not in p.parents]
    assert not big
    model = checkpoints / "inkling_tiny"
    if model.is_dir():
        assert sum(p.stat().st_size for p in model.iterdir()) <= 16 * MIB


def test_modules_are_short():
    assert not {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 450}


def test_no_machine_and_no_registry_is_named():
    # Written in pieces, so that this file passes its own test.
    forbidden = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "pypi" + r"\.org", "files\\.python" + "hosted", "index-" + "url"])
    )
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in tracked() if (m := forbidden.search(text(p)))]
    assert not found


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_plain_pins():
    assert not [line for line in constraints() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]


def test_every_dependency_is_pinned():
    def name(requirement):
        return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {name(r) for r in project["dependencies"]}
    wanted |= {name(r) for extra in project["optional-dependencies"].values() for r in extra}
    assert not wanted - {name(line) for line in constraints()}
