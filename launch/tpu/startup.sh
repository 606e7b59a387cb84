#!/usr/bin/env bash
# Runs on every host of a slice when it starts (see queued_resource.sh): installs the code, mounts the bucket, trains.
# All hosts run the same command; `--distributed` joins them. It is started again when it ends with an error, and goes
# on from the newest checkpoint in the bucket.
set -euo pipefail

metadata() {
  curl --fail --silent --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

BUCKET=$(metadata tml-bucket)
CONFIG=$(metadata tml-config)
export DEBIAN_FRONTEND=noninteractive

if ! command -v gcsfuse >/dev/null; then
  gcloud storage cp "gs://$BUCKET/gcsfuse.deb" /tmp/gcsfuse.deb
  apt-get update --quiet
  apt-get install --quiet --yes /tmp/gcsfuse.deb python3-venv
fi
mkdir -p /gcs /opt/tml_jax
mountpoint --quiet /gcs || gcsfuse --implicit-dirs "$BUCKET" /gcs

tar --extract --gzip --file /gcs/tml_jax.tar.gz --directory /opt/tml_jax
cd /opt/tml_jax
test -d .venv || python3 -m venv .venv
.venv/bin/pip install --quiet --constraint constraints.txt '.[tpu]'

until .venv/bin/python -m launch.train \
  --config="$CONFIG" \
  --workdir=/gcs/runs/"$(basename "$CONFIG" .py)" \
  --tokenizer=/gcs/tokenizer.json \
  --bank=/gcs/speech_bank \
  --distributed; do
  echo "launch.train ended with an error; once more in 30 s" >&2
  sleep 30
done
