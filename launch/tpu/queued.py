"""A job without Kubernetes: slices asked for as a queued resource, and asked for again whenever they are taken away."""

import logging
import shlex
import tempfile
import time

from launch.tpu.commands import Command
from launch.tpu.job import GRACE_S, INTERRUPTED, MOUNT, TpuJob

LOG = logging.getLogger(__name__)
_POLL_S = 60.0
_TAKEN = ("SUSPENDED", "FAILED")


def startup_script(job: TpuJob) -> str:
    """What each host runs when it starts: the job's command in the job's container, until it ends well.

    An interrupted command begins anew without a count, a failed one `job.restarts` times, as on GKE; the mark that it
    leaves in the bucket tells `keep` that it is over.
    """
    variables = " ".join(f"--env={shlex.quote(f'{name}={value}')}" for name, value in job.environment.items())
    command = shlex.join(["python", "-m", *job.arguments])
    return f"""#!/usr/bin/env bash
set -euo pipefail
export HOME=/root
if ! command -v gcsfuse >/dev/null; then
  gcloud storage cp gs://{job.bucket}/gcsfuse.deb /tmp/gcsfuse.deb
  apt-get install --quiet --yes /tmp/gcsfuse.deb
fi
mkdir -p {MOUNT}
mountpoint --quiet {MOUNT} || gcsfuse --implicit-dirs {job.bucket} {MOUNT}
gcloud auth configure-docker {job.region}-docker.pkg.dev --quiet
failures=0
while true; do
  status=0
  docker run --rm --privileged --network=host --stop-timeout={GRACE_S} --volume={MOUNT}:{MOUNT} \\
    {variables} {job.image} {command} || status=$?
  case $status in
    0) touch {MOUNT}/{job.name}.done; exit 0 ;;
    {" | ".join(map(str, INTERRUPTED))}) ;;
    *) failures=$((failures + 1)); test $failures -le {job.restarts} || exit $status ;;
  esac
  sleep 10
done
"""


def create(job: TpuJob, script: str) -> Command:
    """Asks for the slices, whose hosts run the script in the file `script`."""
    runtime = job.slice.accelerator.runtime
    if runtime is None:
        raise ValueError(f"There are no queued resources of {job.slice.kind}: run it on GKE, with --on=gke.")
    nodes = f"--node-count={job.slices} --node-prefix={job.name}" if job.slices > 1 else f"--node-id={job.name}"
    return _queued(
        job,
        "create",
        f"{nodes} --type={job.slice.kind} --topology={job.slice.topology} --runtime-version={runtime} "
        f"--service-account={job.account} --scopes=https://www.googleapis.com/auth/cloud-platform "
        f"{'--spot' if job.spot else ''} --metadata-from-file=startup-script={script}",
    )


def _queued(job: TpuJob, verb: str, flags: str) -> Command:
    where = (f"--zone={job.zone}", f"--project={job.project}")
    return Command(("gcloud", "compute", "tpus", "queued-resources", verb, job.name, *shlex.split(flags), *where))


def keep(job: TpuJob, poll_s: float = _POLL_S) -> None:
    """Keeps the slices asked for until the command has ended well; then gives them back. Ctrl-C leaves them.

    Raises:
      ValueError: the job has ended well before, or gcloud refuses it.
    """
    mark = f"gs://{job.bucket}/{job.name}.done"
    ended = Command(("gcloud", "storage", "ls", mark, f"--project={job.project}"))
    describe = _queued(job, "describe", "--format='value(state.state)'")
    delete = _queued(job, "delete", "--force --quiet")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(startup_script(job))
        script.flush()
        ask = create(job, script.name)
        while True:
            state = describe.run(check=False).strip()
            LOG.info("%s: %s", job.name, state or "not asked for")
            if ended.run(check=False):
                if not state:
                    raise ValueError(f"{job.name} has ended well already; remove {mark} to run it again.")
                delete.run()
                return
            if state in _TAKEN:
                delete.run()
            if not state or state in _TAKEN:
                ask.run()
            time.sleep(poll_s)
