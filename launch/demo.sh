#!/usr/bin/env bash
# The demo from a bare checkout: makes the environment, then runs launch/demo.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/environment.sh" train data plot
cd "$here/.."
exec python launch/demo.py
