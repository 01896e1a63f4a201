"""Every console script: complete `--help`, at once, without the heavy imports."""

import pathlib
import re
import subprocess
import sys
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]
MODULES = sorted({target.split(":")[0] for target in SCRIPTS.values()})

# What makes a start slow: seconds each.
HEAVY = {"jax", "jaxlib", "tensorflow"}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_heavy(module):
    child = run_python("-X", "importtime", "-m", module, "--help")
    lines = child.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert child.returncode == 0, "\n".join(said)
    imported = {line.split("|")[-1].strip() for line in lines if "|" in line}
    assert "svc_jax.command_line" in imported  # the lines are read as meant
    assert not HEAVY & {name.split(".")[0] for name in imported}


@pytest.mark.parametrize("module", MODULES)
def test_help_is_printed_at_once(module, record_property):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        child = run_python("-m", module, "--help")
        seconds.append(time.perf_counter() - start)
        assert child.returncode == 0, child.stderr
    # Reported, not asserted: a busy machine is slow without anything being wrong, and
    # what makes a start slow is looked for above.
    record_property("help_seconds", round(min(seconds), 3))
    print(f"python -m {module} --help: best of 3 {min(seconds):.2f} s")


@pytest.mark.parametrize(("script", "target"), SCRIPTS.items())
def test_console_script_prints_the_help_of_its_module(script, target):
    module, function = target.split(":")
    # What pip writes into the script's file.
    program = (
        f"import sys; sys.argv = [{script!r}, '--help']\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())"
    )
    child = run_python("-c", program)
    assert child.returncode == 0, child.stderr
    assert re.search(r"^ +--\w+", child.stdout, re.MULTILINE), "no flag is described"
    assert child.stdout == run_python("-m", module, "--help").stdout
