"""What `launch.tpu` generates: valid to Kubernetes, covering every chip, and beginning anew exactly when it should."""

import contextlib
import copy
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import pytest
import yaml
from kubeflow_trainer_api.models.io_k8s_api_core_v1_service import IoK8sApiCoreV1Service
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch.tpu import commands, container, queued
from launch.tpu.job import MOUNT, TpuJob
from launch.tpu.slices import ACCELERATORS, Slice
from launch.tpu.xla_flags import init_args
from pallas_kernels.static.compile import ENVIRONMENT
from tml_jax.train.interrupt import Interruption

ROOT = pathlib.Path(__file__).parents[2]
GUARDED = "--host=0.0.0.0 --api_key_file=/gcs/keys --behind_proxy"
SERVE = f"launch.serve --checkpoint=/gcs/model --mesh=1,1,8,4 {GUARDED} --distributed"
TRAIN = "launch.train --config=configs/inkling_small.py --workdir=/gcs/run --tokenizer=/gcs/t.json --distributed"


def job(topology="v5p:2x4x4", **changes):
    described = {"project": "my-project", "zone": "us-east5-a", "bucket": "my-bucket", "command": TRAIN}
    return TpuJob(topology, **(described | changes))


def manifests(described):
    """What kubectl is given: the service account and the JobSet, and the Service of one that serves."""
    (command,) = commands.gke_job(described)
    assert command.arguments == ("kubectl", "apply", "-f", "-")
    return list(yaml.safe_load_all(command.stdin))


JOBS = [
    job(),
    job("v6e:16x16", slices=2, spot=True),
    job("tpu7x:4x8x8", restarts=0),
    job("v6e:1x1", command=f"launch.serve --checkpoint=/gcs/model {GUARDED}"),
    job("v5p:2x4x4", command=f"{SERVE} --port=7000"),
]


def the_api_keeps(manifest):
    """Whether nothing is lost of a JobSet by the models generated from its OpenAPI schema and Kubernetes' own."""
    manifest = copy.deepcopy(manifest)
    for box in pod_of(manifest)["containers"]:
        # The models know a quantity (a number or a string) by a wrapper of their own.
        for amounts in box["resources"].values():
            amounts.update({name: {"actual_instance": str(amount)} for name, amount in amounts.items()})
    read = JobsetV1alpha2JobSet.model_validate(manifest)
    return manifest == read.model_dump(by_alias=True, exclude_unset=True)


def pod_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("described", JOBS, ids=lambda described: described.topology)
def test_jobset_is_valid(described):
    account, jobset, *_ = manifests(described)
    # An unknown field would be lost on the way, a wrong type refused.
    assert the_api_keeps(jobset)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    pod = pod_of(jobset)
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy wants it
    (box,) = pod["containers"]
    assert {mount["name"] for mount in box["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("given", "port"), [("", 50051), (" --port=7000", 7000)])
def test_a_server_has_a_door_on_its_first_host(given, port):
    _, jobset, door = manifests(job("v5p:2x4x4", command=SERVE + given))
    assert IoK8sApiCoreV1Service.model_validate(door).model_dump(by_alias=True, exclude_unset=True) == door
    assert door["metadata"]["name"] != jobset["metadata"]["name"]  # which JobSet's own Service has
    # The labels that JobSet and Kubernetes put on pods: no two hosts have all of these.
    assert door["spec"]["selector"] == {
        "jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"],
        "jobset.sigs.k8s.io/job-index": "0",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    (box,) = pod_of(jobset)["containers"]
    assert [one["port"] for one in door["spec"]["ports"]] == [port] == [box["readinessProbe"]["grpc"]["port"]]
    assert {"containerPort": port} in box["ports"]


def test_a_job_that_trains_has_none():
    assert [manifest["kind"] for manifest in manifests(job())] == ["ServiceAccount", "JobSet"]
    assert "readinessProbe" not in pod_of(manifests(job())[1])["containers"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec["failurePolicy"].update(maxRestart=1),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(parallelism="8"),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"].update(hostNetworks=True),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][0].pop("action"),
    ],
)
def test_that_check_sees_what_is_wrong(spoil):
    _, jobset = manifests(job())
    spoil(jobset["spec"])
    with contextlib.suppress(ValueError):
        assert not the_api_keeps(jobset)


@pytest.mark.parametrize("described", JOBS, ids=lambda described: described.topology)
def test_every_chip_has_its_pod(described):
    spec = manifests(described)[1]["spec"]["replicatedJobs"][0]
    work = spec["template"]["spec"]
    pod = work["template"]["spec"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = 1
    for side in sides:
        chips *= int(side)
    limits = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert spec["replicas"] == described.slices
    assert work["parallelism"] == work["completions"] == chips // limits
    assert work["parallelism"] * limits == chips
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == described.spot


def becomes_of(jobset, *, status=None, evicted=False):
    """What the controllers do when one pod ends so: Kubernetes' Job first, then JobSet (their documented rules)."""
    spec = jobset["spec"]
    work = spec["replicatedJobs"][0]["template"]["spec"]
    assert work["backoffLimit"] == 0
    (box,) = work["template"]["spec"]["containers"]
    reason = "BackoffLimitExceeded"
    for rule in work["podFailurePolicy"]["rules"]:
        exits, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if exits:
            assert exits["operator"] == "In" and exits["containerName"] == box["name"]
            assert exits["values"] == sorted(set(exits["values"])) and 0 not in exits["values"]
        if (exits and status in exits["values"]) or (
            evicted and conditions[:1] == [{"type": "DisruptionTarget", "status": "True"}]
        ):
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in spec["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet" if spec["failurePolicy"]["maxRestarts"] else "FailJobSet"


def test_interruptions_begin_anew_uncounted_and_failures_counted():
    jobset = manifests(job(restarts=3))[1]
    for signal in Interruption.SIGNALS:  # what `Interruption` ends a saved run with
        assert becomes_of(jobset, status=128 + signal) == "RestartJobSetAndIgnoreMaxRestarts"
    assert becomes_of(jobset, evicted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    for status in (1, 2, 134, 137):
        assert becomes_of(jobset, status=status) == "RestartJobSet"
    assert becomes_of(manifests(job(restarts=0))[1], status=1) == "FailJobSet"


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "machine"),
    [
        ("v5p:2x2x1", 4, 1, "ct5p-hightpu-4t"),
        ("v5p:2x4x4", 32, 8, "ct5p-hightpu-4t"),
        ("v5p:8x8x8", 512, 128, "ct5p-hightpu-4t"),
        ("v6e:1x1", 1, 1, "ct6e-standard-1t"),
        ("v6e:16x16", 256, 64, "ct6e-standard-4t"),
        ("tpu7x:2x2x1", 4, 1, "tpu7x-standard-4t"),
        ("tpu7x:4x8x8", 256, 64, "tpu7x-standard-4t"),
    ],
)
def test_what_follows_from_a_slice(name, chips, hosts, machine):
    slice_ = Slice(name)
    assert (slice_.chips, slice_.hosts, slice_.machine) == (chips, hosts, machine)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5p:4x4x2", "2x4x4, of 32 chips"),
        ("v5p:4x4", "2x2x4, of 16 chips"),
        ("v5p:3x4x4", "4x4x4, of 64 chips"),
        ("v5p:0x4x4", "2x2x4, of 16 chips"),
        ("v6e:4x4x4", "8x8, of 64 chips"),
        ("v6e:32x32", "16x16, of 256 chips"),
        ("tpu7x:8x8x4", "4x8x8, of 256 chips"),
        ("v5p:", "like v5p:"),
        ("v5p:axb", "like v5p:"),
        ("v6:4x4", "v6e"),
    ],
)
def test_a_wrong_slice_names_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=nearest) as refused:
        Slice(name)
    assert str(refused.value).endswith(".") and str(refused.value).count("\n") == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"zone": "us-east5"}, "is no zone"),
        ({"bucket": "gs://my-bucket"}, "without gs://"),
        ({"name": "My_Job"}, "is no name"),
        ({"project": ""}, "is no project"),
        ({"command": "rm -r /gcs"}, "'rm' is no command"),
        ({"command": "launch.nothing"}, "'launch.nothing' is no command"),
        ({"command": ""}, "is no command"),
        ({"topology": "v6e:2x2", "slices": 2}, "single host"),
        ({"restarts": -1}, "restart -1 times"),
        ({"command": SERVE.replace("--host=0.0.0.0", "")}, "add --host=0.0.0.0"),
        ({"command": SERVE.replace("--api_key_file=/gcs/keys", "")}, "add --api_key_file=FILE"),
        ({"command": SERVE.replace("--behind_proxy", "")}, "add --behind_proxy"),
        ({"command": SERVE.replace("--distributed", "")}, "8 hosts serve together with --distributed"),
    ],
)
def test_a_wrong_description_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        job(**changes)


def node_pools(described):
    lines = [" ".join(command.arguments) for command in commands.cluster(described)]
    return lines, [line for line in lines if "node-pools create" in line]


def test_a_node_pool_a_slice():
    _, pools = node_pools(job("v6e:4x4", slices=3, spot=True))
    assert len(pools) == len(set(pools)) == 3
    assert all(re.search("--num-nodes=4 --tpu-topology=4x4 --spot", pool) for pool in pools)
    _, (alone,) = node_pools(job("v6e:2x2"))
    assert "--num-nodes=1" in alone and "topology" not in alone
    lines, (policed,) = node_pools(job("tpu7x:4x4x4"))
    assert "--placement-policy=tml-jax" in policed and "--tpu-topology" not in policed
    assert any("workload-policy tml-jax" in line and "--accelerator-topology=4x4x4" in line for line in lines)


def test_the_image_holds_all_that_a_command_needs(tmp_path):
    for line in re.findall(r"^COPY (.*)$", container.dockerfile(), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    program = """
import launch.train
from tml_jax.serve import server
from tml_jax.wire import protos
from tml_jax.train import loop
from tml_jax.train.config import load_experiment
load_experiment("configs/inkling_small.py")
print(protos.ROOT, launch.train.__file__)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "tml_jax" / "wire" / "proto"), str(tmp_path / "launch" / "train.py")]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts shell scripts in the place of programs; each call is a line of the file that is returned."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    log.touch()

    def put(name, body=""):
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return put, log, tmp_path


@pytest.mark.parametrize(
    ("statuses", "restarts", "ends", "runs"),
    [("143 143 143 0", 0, 0, 4), ("1 143 1 0", 2, 0, 4), ("1 1 1 0", 2, 1, 3), ("130 2", 0, 2, 2)],
)
def test_a_host_of_a_queued_resource(programs, statuses, restarts, ends, runs):
    put, log, folder = programs
    for name in ("gcloud", "gcsfuse", "apt-get", "mountpoint", "sleep"):
        put(name)
    (folder / "statuses").write_text("\n".join(statuses.split()) + "\n")
    put("docker", f"s=$(head -1 {folder}/statuses); sed -i 1d {folder}/statuses; exit $s")
    script = queued.startup_script(job(restarts=restarts)).replace(MOUNT, str(folder / "gcs"))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == ends, done.stderr
    calls = [line for line in log.read_text().splitlines() if line.startswith("docker run")]
    assert len(calls) == runs and all("python -m launch.train --config=configs/inkling_small.py" in c for c in calls)
    assert (folder / "gcs" / "tml-jax.done").exists() == (ends == 0)


def test_a_queued_resource_is_asked_for_until_the_job_has_ended(programs):
    put, log, folder = programs
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE"]
    (folder / "states").write_text("\n".join(states) + "\n")
    put(
        "gcloud",
        f"""case "$*" in
  *describe*) s=$(head -1 {folder}/states); sed -i 1d {folder}/states; test -n "$s" && echo $s ;;
  *"storage ls"*) test -s {folder}/states || echo mark ;;
esac""",
    )
    queued.keep(job("v5p:4x4x4", spot=True, slices=2), poll_s=0.0)
    did = re.findall(r"queued-resources (create|delete) tml-jax (.*)", log.read_text())
    assert [verb for verb, _ in did] == ["create", "delete", "create", "delete"]
    assert "--node-count=2" in did[0][1] and "--type=v5p --topology=4x4x4" in did[0][1] and "--spot" in did[0][1]
    (folder / "states").write_text("")
    put("gcloud", 'case "$*" in *"storage ls"*) echo mark ;; *) exit 1 ;; esac')
    with pytest.raises(ValueError, match="ended well already"):
        queued.keep(job(), poll_s=0.0)


def test_what_only_gke_has_is_said():
    with pytest.raises(ValueError, match=r"no queued resources of tpu7x.*gke"):
        queued.create(job("tpu7x:4x4x4"), "script")


def test_a_missing_program_is_one_sentence(monkeypatch, programs):
    put, _, folder = programs
    (command,) = commands.gke_job(job())
    monkeypatch.setenv("PATH", str(folder / "bin"))
    with pytest.raises(ValueError, match=r"^kubectl is not installed here; --dry_run .*\.$"):
        command.run()
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    put("kubectl", f"cat > {folder}/given")
    command.run()
    assert list(yaml.safe_load_all((folder / "given").read_text())) == manifests(job())
    put("kubectl", "exit 3")
    with pytest.raises(ValueError, match="ended with status 3"):
        command.run()


def test_a_dry_run_runs_nothing(tmp_path):
    line = [sys.executable, "-m", "launch.tpu", "--project=my-project", "--zone=us-east5-a", "--bucket=my-bucket"]
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run([*line, "--dry_run"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.removeprefix("kubectl apply -f - <<'END'\n").removesuffix("END\n")
    assert [document["kind"] for document in yaml.safe_load_all(text)] == ["ServiceAccount", "JobSet"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "launch.tpu: kubectl is not installed here; --dry_run prints what it would be told.\n"


def flags_of(module):
    """The flags that a command defines, by its source."""
    shared = "".join((ROOT / "launch" / name).read_text() for name in ("cli.py", "reach.py"))
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    names = set(re.findall(r'(?:flags\.DEFINE_\w+|cli\.out_\w+)\(\s*"(\w+)"', source))
    asked = re.findall(r"(?:cli|reach)\.(\w+)\(", source)
    for function in asked:
        if body := re.search(rf"def {function}\(.*?(?=\ndef |\Z)", shared, re.DOTALL):
            names |= set(re.findall(r'(?:DEFINE_\w+|out_\w+)\(\s*"(\w+)"', body[0]))
            asked += set(re.findall(r"[ (](\w+)\(", body[0])) - set(asked)
    return names


def documented():
    """Every command line of the guide and the default one of `launch.tpu`: module and flags."""
    text = (ROOT / "docs" / "tpu.md").read_text().replace("\\\n", " ")
    text += (ROOT / "launch" / "tpu" / "__main__.py").read_text().replace('"\n    "', "")
    found = re.findall(r"\b(launch\.\w+)((?:[ \n]+--\w[^\s`'\"]*)+)", text)
    return [(module, flag) for module, flags in found for flag in re.findall(r"--(?:no)?(\w+)", flags)]


def test_the_guide_types_flags_that_there_are():
    pairs = documented()
    assert {"launch.tpu", "launch.train", "launch.aot_compile", "launch.convert", "launch.serve"} <= {
        m for m, _ in pairs
    }
    assert not [(module, flag) for module, flag in pairs if flag not in flags_of(module)]


@pytest.mark.tpu_compile
@pytest.mark.parametrize("kind", ACCELERATORS)
def test_the_compiler_hides_gathers_with_these_flags(kind):
    """And what is hidden, in parts, is counted once."""
    pytest.importorskip("libtpu")
    program = f"""
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from tml_jax.perf import hlo
slice_ = topologies.get_topology_desc(platform="tpu", topology_name="{kind}:2x2{"" if kind == "v6e" else "x1"}")
n = len(slice_.devices)
mesh = topologies.make_mesh(slice_, (n,), ("fsdp",))
f = jax.grad(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].astype("float32").sum())
args = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=NamedSharding(mesh, p)) for s, p in (
    ((4, 4096, 4096), P(None, "fsdp")), ((n * 1024, 4096), P("fsdp")))]
text = jax.jit(f).lower(*args).compile().as_text()
moved = [c for c in hlo.analyse(text).collectives if c.kind == "all-gather"]
print(text.count("async_collective_fusion"), *(part for c in moved for part in (c.count, c.bytes)))
"""
    hidden, moved = [], []
    for flags in ("", init_args(kind)):
        environment = os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        fusions, *gathers = map(int, done.stdout.split())
        hidden.append(fusions)
        moved.append(gathers)
    assert moved[0] == moved[1] == [8, 8 * 4096 * 4096 * 2]  # four matrices, forward and backward
    assert hidden[0] == 0 and (hidden[1] > 0) == ("fuse_all_gather" in init_args(kind))
