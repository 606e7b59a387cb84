"""The pod files parse, and start the command that exists."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
TPU = ROOT / "launch" / "tpu"


@pytest.mark.parametrize("script", sorted(TPU.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_jobset_uses_every_chip_of_its_slice():
    jobset = yaml.safe_load((TPU / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    x, y, z = (int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == x * y * z // chips
    assert container["command"] == ["python", "-m", "launch.train"]


@pytest.mark.parametrize("name", ["jobset.yaml", "startup.sh"])
def test_flags_are_those_of_launch_train(name):
    text = (TPU / name).read_text()
    used = set(
        re.findall(
            r"--(\w+)(?==|$|;|\s)",
            text[text.index("launch.train", text.index("command") if name == "jobset.yaml" else text.index("until")) :],
        )
    )
    help_text = subprocess.run(
        [sys.executable, "-m", "launch.train", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert used and used <= set(re.findall(r"^ +--(?:\[no\])?(\w+)", help_text, re.MULTILINE))
    assert {"config", "workdir", "distributed"} <= used
