"""Makes what a job on TPUs needs, and starts it: ``python -m launch.tpu --topology=v5p:2x4x4 ... [--dry_run]``.

    --make=project   services, bucket, image repository and service account of an empty project
    --make=cluster   a GKE cluster with the job's slices
    --make=image     the container image, from this folder
    --make=job       the job: a JobSet, or with --on=queued_resource slices without Kubernetes, kept asked for

With --dry_run it prints what it would run. docs/tpu.md goes all the way from an empty project to a served model.
"""

import logging

from absl import flags

from launch import cli
from launch.tpu import commands, queued
from launch.tpu.job import TpuJob

_MAKE = flags.DEFINE_enum("make", "job", ["project", "cluster", "image", "job"], "What is made.")
_ON = flags.DEFINE_enum("on", "gke", ["gke", "queued_resource"], "Where the job runs.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x4x4", "The slice: v5p:2x4x4, v6e:16x16, tpu7x:4x4x4, ...")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices, joined by the data centre's network.", lower_bound=1)
_PROJECT = flags.DEFINE_string("project", None, "The Google Cloud project.", required=True)
_ZONE = flags.DEFINE_string("zone", None, "Where the slices lie, such as us-east5-a.", required=True)
_BUCKET = flags.DEFINE_string("bucket", None, "The bucket, seen by all hosts as /gcs.", required=True)
_NAME = flags.DEFINE_string("name", "tml-jax", "Of the job, its cluster, its images and its account.")
_COMMAND = flags.DEFINE_string(
    "command",
    "launch.train --config=configs/inkling_small.py --workdir=/gcs/runs/inkling_small "
    "--tokenizer=/gcs/inkling_small/tokenizer.json --bank=/gcs/speech_bank --distributed",
    "What every host runs.",
)
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper slices, which may be taken away at any moment.")
_RESTARTS = flags.DEFINE_integer("restarts", 10, "Failures that the job survives.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


def main(argv: list[str]) -> None:
    del argv
    logging.getLogger("launch.tpu").setLevel(logging.INFO)
    job = TpuJob(
        topology=_TOPOLOGY.value,
        project=_PROJECT.value,
        zone=_ZONE.value,
        bucket=_BUCKET.value,
        command=_COMMAND.value,
        name=_NAME.value,
        slices=_SLICES.value,
        spot=_SPOT.value,
        restarts=_RESTARTS.value,
    )
    if _MAKE.value == "job" and _ON.value == "queued_resource":
        if _DRY_RUN.value:
            print(queued.create(job, "startup.sh"), f"# startup.sh:\n{queued.startup_script(job)}", sep="\n\n")
        else:
            queued.keep(job)
        return
    make = {"project": commands.project, "cluster": commands.cluster, "image": commands.image, "job": commands.gke_job}
    for command in make[_MAKE.value](job):
        print(command if _DRY_RUN.value else command.run())


if __name__ == "__main__":
    cli.run(main)
