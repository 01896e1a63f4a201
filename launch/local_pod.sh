#!/usr/bin/env bash
# A pod on this machine: N processes of M CPU devices each train together.
#
#   bash launch/local_pod.sh [--dry_run] N M --config=... --workdir=...
#
# If one process dies, all are started again and resume, at most RESTARTS times (3); an
# error that a user can mend (exit code 2) is not tried again. Needs bash 4.3.
set -euo pipefail
run=exec
[[ ${1:-} != --dry_run ]] || { run=echo; shift; }
(($# >= 2)) || { echo "usage: $0 [--dry_run] N M FLAGS_OF_TRAIN..." >&2; exit 2; }
processes=$1 devices=$2
shift 2

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

start() {   # ID PORT FLAGS_OF_TRAIN...
  $run env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices" \
    python -m svc_jax.train --coordinator=localhost:"$2" \
    --num_processes="$processes" --process_id="$1" "${@:3}"
}

# Starts all processes and waits for them; when one fails, the others are killed.
start_all() {
  local port id code=0
  port=$(free_port)
  pids=()
  for ((id = 0; id < processes; id++)); do
    start "$id" "$port" "$@" &
    pids+=($!)
  done
  for id in "${pids[@]}"; do
    wait -n && continue
    code=$?
    [[ -n $stopping ]] || kill -KILL "${pids[@]}" 2>/dev/null
    break
  done
  wait
  return "$code"
}

if [[ $run == echo ]]; then
  for ((id = 0; id < processes; id++)); do start "$id" PORT "$@"; done
  exit
fi
stopping=
trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT   # each saves and ends
for ((attempt = 0; attempt <= ${RESTARTS:-3}; attempt++)); do
  code=0
  start_all "$@" || code=$?
  [[ -z $stopping ]] || exit 0
  ((code != 0 && code != 2)) || exit "$code"
  echo "a process ended with code $code: all are ended" >&2
done
exit "$code"
