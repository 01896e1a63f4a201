#!/usr/bin/env bash
# The tests from a bare checkout: makes the environment, then runs pytest with "$@".
# Two processes: most of the time is Python tracing on one core. `-n 0` for a debugger.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/launch/environment.sh" train data plot eval onnx dev
cd "$root"
exec python -m pytest -n 2 --dist loadfile "$@"
