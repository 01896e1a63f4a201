#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice that exists: the same command on each of them.
#
#   bash launch/tpu_pod.sh [--dry_run] NAME ZONE --config=... --workdir=...
#
# Copies the committed checkout to them and installs it. Dataset and workdir stand on a file system
# that all hosts see. If one dies, the others end within two minutes; then all are started
# again and resume, at most RESTARTS times (100).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=
[[ ${1:-} != --dry_run ]] || { run=echo; shift; }
(($# >= 2)) || { echo "usage: $0 [--dry_run] NAME ZONE FLAGS_OF_TRAIN..." >&2; exit 2; }
name=$1 zone=$2
shift 2

on_all_hosts() {
  $run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

flags=$(printf ' %q' "$@")
unpack='mkdir -p svc_jax && tar -xf svc_jax.tar -C svc_jax'
install='cd svc_jax && source launch/environment.sh train tpu'
train="$install && echo \$\$ >~/svc_jax.pid && exec python -m svc_jax.train --coordinator=auto$flags"
stop='xargs -r kill -KILL <~/svc_jax.pid 2>/dev/null; rm -f ~/svc_jax.pid'

archive=$(mktemp -d)/svc_jax.tar
$run git -C "$root" archive --output="$archive" HEAD
$run gcloud compute tpus tpu-vm scp "$archive" "$name": --zone="$zone" --worker=all
on_all_hosts "$unpack && $install"
for ((attempt = 0; attempt <= ${RESTARTS:-100}; attempt++)); do
  on_all_hosts "$stop"   # what a lost connection left behind
  if on_all_hosts "$train"; then exit; fi
  echo "a host failed: all start again" >&2
  sleep "${PAUSE:-10}"
done
exit 1
