#!/bin/bash
# A Cloud TPU slice of several hosts: start the same command on every one of them.
#     launch/tpu_pod.sh NAME ZONE --config palm_62b.py --mesh.fsdp 64 --mesh.tensor 4
# The hosts have this checkout in ~/pretrain with `pip install -e '.[tpu]'` done. The hosts of a slice find
# each other; the run directory must be on a file system that all of them see.
set -euo pipefail
name=$1 zone=$2
shift 2
printf -v arguments '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd pretrain && .venv/bin/python -m pretrain.launch --cluster $arguments"
