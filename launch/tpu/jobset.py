"""A job as a GKE JobSet (jobset.x-k8s.io/v1alpha2): one replicated Job a slice, one pod a host; and a server's door."""

from typing import Any

from launch.tpu.job import GRACE_S, INTERRUPTED, MOUNT, TpuJob

VERSION = "v0.12.0"
"""The release of the JobSet controller that `launch.tpu.commands` installs."""

_CONTAINER = "tml-jax"


def jobset(job: TpuJob) -> dict[str, Any]:
    """The manifest.

    A pod that was asked to end, by its exit status or by Kubernetes' own word, fails its Job for the reason
    "PodFailurePolicy", and then the set begins anew without a count. Any other failure, a dead host or a bug, is one of
    `job.restarts`. All pods begin anew together: the processes of a pod cannot go on with one of them gone.
    """
    policy = {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": list(INTERRUPTED)},
            },
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            # A slice belongs to one Job.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {
                        "name": "interrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": job.slices,
                    "template": {
                        "spec": {
                            "parallelism": job.slice.hosts,
                            "completions": job.slice.hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": policy,
                            "template": _pod(job),
                        }
                    },
                }
            ],
        },
    }


def service_account(job: TpuJob) -> dict[str, Any]:
    """The Kubernetes account of the pods, which stands for `job.account`."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": job.name, "annotations": {"iam.gke.io/gcp-service-account": job.account}},
    }


def door(job: TpuJob) -> dict[str, Any]:
    """The Service of a job that serves, ``<name>-door``: its port on the first host, once the model is there.

    JobSet has a Service by the job's own name, without a port.
    """
    first = {"jobset-name": job.name, "job-index": "0"}
    selector = {f"jobset.sigs.k8s.io/{label}": value for label, value in first.items()}
    selector["batch.kubernetes.io/job-completion-index"] = "0"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{job.name}-door"},
        "spec": {"selector": selector, "ports": [{"name": "grpc", "port": job.port}]},
    }


def _pod(job: TpuJob) -> dict[str, Any]:
    chips = {"google.com/tpu": job.slice.chips_per_host}
    spot = {"cloud.google.com/gke-spot": "true"} if job.spot else {}
    ports = [8471, 8080]  # of libtpu, within and between slices
    probe = {}
    if job.port is not None:
        ports.append(job.port)
        probe = {"readinessProbe": {"grpc": {"port": job.port}, "periodSeconds": 5}}  # true of the first host alone
    return {
        "metadata": {
            # GKE adds the container that mounts the bucket; it holds back whole files while they are written.
            "annotations": {"gke-gcsfuse/volumes": "true", "gke-gcsfuse/ephemeral-storage-limit": "0"}
        },
        "spec": {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "terminationGracePeriodSeconds": GRACE_S,
            "serviceAccountName": job.name,
            "nodeSelector": job.slice.node_selector | spot,
            "containers": [
                {
                    "name": _CONTAINER,
                    "image": job.image,
                    "command": ["python", "-m"],
                    "args": job.arguments,
                    "env": [{"name": name, "value": value} for name, value in job.environment.items()],
                    "ports": [{"containerPort": port} for port in ports],
                    **probe,
                    "resources": {"requests": dict(chips), "limits": dict(chips)},
                    "securityContext": {"privileged": True},  # GKE before 1.28 shows the chips to no other
                    "volumeMounts": [{"name": "bucket", "mountPath": MOUNT}],
                }
            ],
            "volumes": [
                {
                    "name": "bucket",
                    "csi": {
                        "driver": "gcsfuse.csi.storage.gke.io",
                        "volumeAttributes": {"bucketName": job.bucket, "mountOptions": "implicit-dirs"},
                    },
                }
            ],
        },
    }
