"""What holds for the repository as a whole: its size, its house, its pins."""

import ast
import pathlib
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
MIB = 1 << 20
# Floors from the top down: a module imports from its own floor and from floors below it. The rooms of one floor
# don't know each other.
FLOORS = (
    ("tests",),
    ("examples",),
    ("launch", "configs"),
    ("tml_jax.perf", "tml_jax.eval"),
    ("tml_jax.serve",),
    ("tml_jax.client",),
    ("tml_jax.train",),
    ("tml_jax.data",),
    ("tml_jax.checkpoint",),
    ("tml_jax.executor",),
    ("tml_jax.model",),
    ("tml_jax.wire",),
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
        assert sum(p.stat().st_size for p in model.iterdir()) <= 32 * MIB


def test_modules_are_short():
    assert not {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 450}


def test_no_machine_and_no_registry_is_named():
    # Written in pieces, so that this file passes its own test.
    forbidden = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "pypi" + r"\.org", "files\\.python" + "hosted", "index-" + "url"])
    )
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in tracked() if (m := forbidden.search(text(p)))]
    assert not found


def test_links_lead_somewhere():
    """Those of the repository's own texts to its files, and to headings in them."""
    dead = []
    for page in (p for p in tracked() if p.suffix == ".md"):
        for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text(page)):
            name, _, heading = link.partition("#")
            there = page.parent / name if name else page
            titles = re.findall(r"^#+ (.+)$", text(there), re.MULTILINE) if there.is_file() and heading else []
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            if not there.exists() or (heading and heading not in anchors):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert not dead


PINS = {
    "constraints.txt": {"tpu", "test", "browser", "telemetry", "docs", "dev", "speech"},
    "constraints-newest.txt": {"test"},
}


def constraints(file):
    lines = (ROOT / file).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def requirements(*extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(line)
        for lines in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras))
        for line in lines
    ]


def holds(requirement, python):
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("file", PINS)
def test_every_dependency_has_one_pin_that_pyproject_allows(file, python):
    pins = [pin for pin in constraints(file) if holds(pin, python)]
    assert not [str(pin) for pin in pins if not re.fullmatch(r"==[A-Za-z0-9.]+", str(pin.specifier))]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins)
    wanted = [requirement for requirement in requirements(*PINS[file]) if holds(requirement, python)]
    assert not [
        str(requirement)
        for requirement in wanted
        if versions.get(canonicalize_name(requirement.name), "") not in requirement.specifier
    ]


@pytest.mark.parametrize(
    ("python", "jax", "flax", "together"),
    [
        ("3.11", "0.10.2", "0.12.8", True),
        ("3.12", "0.11.2", "0.12.8", False),
        ("3.12", "0.12.0.1", "0.12.9", False),
        ("3.12", "0.11.1", "0.12.10", False),
        ("3.12", "0.11.2", "0.12.10", True),
        ("3.13", "0.12.0.1", "0.12.12", True),
    ],
)
def test_versions_that_cannot_work_together_are_excluded(python, jax, flax, together):
    versions = {"jax": jax, "flax": flax}
    wanted = [r for r in requirements() if r.name in versions and holds(r, python)]
    assert {r.name for r in wanted} == set(versions)
    assert all(versions[r.name] in r.specifier for r in wanted) == together
