#!/bin/bash
# Several processes on this machine's CPU, to try what a cluster does:
#     launch/local.sh 2 4 --config palm_tiny.py --steps 20
# starts 2 processes of 4 fake devices each.
set -euo pipefail
processes=$1 devices=$2
shift 2
port=$((20000 + RANDOM % 20000))
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((process = 1; process < processes; process++)); do
  "${PYTHON:-python}" -m pretrain.launch "$@" --cpu-devices "$devices" \
    --coordinator "127.0.0.1:$port" --processes "$processes" --process "$process" &
done
"${PYTHON:-python}" -m pretrain.launch "$@" --cpu-devices "$devices" \
  --coordinator "127.0.0.1:$port" --processes "$processes" --process 0
wait
