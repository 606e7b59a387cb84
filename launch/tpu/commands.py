"""What is run to make a job's surroundings and the job: lists of commands, to be printed or run."""

import dataclasses
import shlex
import shutil
import subprocess

import yaml

from launch.tpu.container import dockerfile
from launch.tpu.job import TpuJob
from launch.tpu.jobset import VERSION, door, jobset, service_account


@dataclasses.dataclass(frozen=True)
class Command:
    """A program, its arguments, and what it reads from its standard input."""

    arguments: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        line = shlex.join(self.arguments)
        return f"{line} <<'END'\n{self.stdin}END" if self.stdin else line

    def run(self, *, check: bool = True) -> str:
        """Runs it and returns what it wrote, nothing where it failed and `check` is off.

        Raises:
          ValueError: it isn't installed, or it failed.
        """
        program = self.arguments[0]
        if shutil.which(program) is None:
            raise ValueError(f"{program} is not installed here; --dry_run prints what it would be told.")
        errors = None if check else subprocess.DEVNULL
        done = subprocess.run(self.arguments, input=self.stdin, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode and check:
            raise ValueError(f"{shlex.join(self.arguments)} ended with status {done.returncode}.")
        return "" if done.returncode else done.stdout


def _gcloud(job: TpuJob, line: str) -> Command:
    return Command(("gcloud", *shlex.split(line), f"--project={job.project}"))


def project(job: TpuJob) -> list[Command]:
    """What an empty project needs: services, a bucket, a place for images, and an account for the hosts."""
    bucket, where = f"gs://{job.bucket}", f"--location={job.region}"
    services = " ".join(f"{name}.googleapis.com" for name in ("compute", "container", "tpu", "artifactregistry", "iam"))
    member = f"--member=serviceAccount:{job.account}"
    return [
        _gcloud(job, f"services enable {services}"),
        _gcloud(job, f"storage buckets create {bucket} {where} --uniform-bucket-level-access"),
        _gcloud(job, f"artifacts repositories create {job.name} --repository-format=docker {where}"),
        _gcloud(job, f"iam service-accounts create {job.name}"),
        _gcloud(job, f"storage buckets add-iam-policy-binding {bucket} --role=roles/storage.objectUser {member}"),
        _gcloud(
            job,
            f"artifacts repositories add-iam-policy-binding {job.name} {where} "
            f"--role=roles/artifactregistry.reader {member}",
        ),
    ]


def cluster(job: TpuJob) -> list[Command]:
    """A GKE cluster with the job's slices, a node pool each, and the JobSet controller."""
    where = f"--location={job.region}"
    commands = [
        _gcloud(
            job,
            f"container clusters create {job.name} {where} --node-locations={job.zone} --num-nodes=1 "
            f"--machine-type=n2-standard-8 --workload-pool={job.project}.svc.id.goog --addons=GcsFuseCsiDriver",
        ),
        _gcloud(
            job,
            f"iam service-accounts add-iam-policy-binding {job.account} --role=roles/iam.workloadIdentityUser "
            f"--member='serviceAccount:{job.project}.svc.id.goog[default/{job.name}]'",
        ),
    ]
    topology = ""
    if job.slice.hosts > 1:
        topology = f"--tpu-topology={job.slice.topology}"
        if job.slice.accelerator.policy:
            topology = f"--placement-policy={job.name}"
            commands.append(
                _gcloud(
                    job,
                    f"compute resource-policies create workload-policy {job.name} --region={job.region} "
                    f"--type=HIGH_THROUGHPUT --accelerator-topology={job.slice.topology}",
                )
            )
    for number in range(job.slices):
        commands.append(
            _gcloud(
                job,
                f"container node-pools create {job.name}-{number} --cluster={job.name} {where} "
                f"--node-locations={job.zone} --machine-type={job.slice.machine} --num-nodes={job.slice.hosts} "
                f"{topology} {'--spot' if job.spot else ''}",
            )
        )
    manifests = f"https://github.com/kubernetes-sigs/jobset/releases/download/{VERSION}/manifests.yaml"
    return [
        *commands,
        _gcloud(job, f"container clusters get-credentials {job.name} {where}"),
        Command(("kubectl", "apply", "--server-side", "-f", manifests)),
    ]


def image(job: TpuJob) -> list[Command]:
    """The container image, from the folder of this project."""
    return [
        Command(("gcloud", "auth", "configure-docker", f"{job.region}-docker.pkg.dev", "--quiet")),
        Command(
            ("docker", "build", "--platform=linux/amd64", f"--tag={job.image}", "--file=-", "."),
            dockerfile(),
        ),
        Command(("docker", "push", job.image)),
    ]


def gke_job(job: TpuJob) -> list[Command]:
    """The job, on a cluster; of one that serves, its door, too."""
    manifests = [service_account(job), jobset(job), *([] if job.port is None else [door(job)])]
    text = yaml.safe_dump_all(manifests, sort_keys=False, width=1000)
    return [Command(("kubectl", "apply", "-f", "-"), text)]
