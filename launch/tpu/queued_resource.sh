#!/usr/bin/env bash
# Keeps one v5p slice asked for and training, from any machine with gcloud: makes it again whenever it is preempted.
#
#   PROJECT=my-project ZONE=us-east5-a BUCKET=my-bucket launch/tpu/queued_resource.sh
set -euo pipefail

: "${PROJECT:?the Google Cloud project}" "${ZONE:?the zone, such as us-east5-a}" "${BUCKET:?the bucket, without gs://}"
NAME=${NAME:-tml-jax-train}
# v5p-64 counts cores: 32 chips, the slice 2x4x4.
ACCELERATOR=${ACCELERATOR:-v5p-64}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
CONFIG=${CONFIG:-configs/inkling_small.py}
POLL_S=${POLL_S:-60}

here=$(cd "$(dirname "$0")" && pwd)
where=(--project "$PROJECT" --zone "$ZONE")

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  # The hosts install and run the code that lies in the bucket.
  local code
  code=$(mktemp)
  git -C "$here/../.." archive --format=tar.gz --output "$code" HEAD
  gcloud storage cp "$code" "gs://$BUCKET/tml_jax.tar.gz" --project "$PROJECT"
  gcloud compute tpus queued-resources create "$NAME" "${where[@]}" \
    --node-id "$NAME" \
    --accelerator-type "$ACCELERATOR" \
    --runtime-version "$RUNTIME" \
    --spot \
    --metadata "tml-bucket=$BUCKET,tml-config=$CONFIG" \
    --metadata-from-file "startup-script=$here/startup.sh"
}

while true; do
  now=$(state)
  echo "$(date -u +%FT%TZ) $NAME: $now"
  case $now in
    NONE) create ;;
    SUSPENDED | FAILED) gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet ;;
  esac
  sleep "$POLL_S"
done
