"""Runs that are killed at any moment end as if nothing had been."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from svc_jax import checkpoints

CONFIG = """
import json, pathlib
import ml_collections

def get_config():
    text = pathlib.Path(__file__).with_suffix(".json").read_text()
    return ml_collections.ConfigDict(json.loads(text))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_config):
    """Returns the command that trains in a workdir, saving and deleting at each step.

    The networks are tiny and the run stays in its first phase: most of a life is to
    start, and the phases change nothing in what is saved.
    """
    folder = tmp_path_factory.mktemp("config")
    config = tiny_config(
        **{
            "phases.adversarial": 1.0,
            "phases.mixup": 1.0,
            "batch_size": 2,
            "geometry.segment_samples": 1600,
            "generator.dilations": (1,),
            "generator.loudness_dilations": (1,),
            "generator.sine_dilations": (1,),
            "discriminator.dilations": (1, 1),
            "loss.fft_sizes": (128,),
            "eval_every": 1000,
            "checkpoint_every": 1,
            "keep": 2,
        }
    )
    (folder / "tiny.json").write_text(config.to_json_best_effort())
    (folder / "tiny.py").write_text(CONFIG)

    def make(workdir, num_steps: int) -> list[str]:
        return [
            *(sys.executable, "-m", "svc_jax.train"),
            f"--config={folder / 'tiny.py'}",
            f"--config.num_steps={num_steps}",
            f"--workdir={workdir}",
        ]

    return make


def saved_state(workdir, step: int):
    """A checkpoint as numpy arrays, whatever it is of."""
    path = workdir / "checkpoints" / str(step) / "default"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        leaves = checkpointer.metadata(path).item_metadata.tree
        as_arrays = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves
        )
        return checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(restore_args=as_arrays)
        )


def num_lines(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process, workdir, steps: int, seconds: float):
    """Kills a run when it has made that many steps, and waited so many seconds."""
    wanted = num_lines(workdir) + steps
    while num_lines(workdir) < wanted and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.wait()


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.proof)])
def test_killed_at_any_moment_a_run_ends_bit_equal(command, tmp_path, kills):
    num_steps = 8 * kills + 8
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, num_steps), check=True, capture_output=True)

    rng = np.random.default_rng(kills)
    newest = killed = 0
    while killed < kills:
        process = subprocess.Popen(
            command(broken, num_steps),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if rng.random() < 0.2:  # as it starts
            kill_after(process, broken, 0, rng.uniform(0, 4))
        else:
            kill_after(process, broken, int(rng.integers(1, 4)), rng.uniform(0, 0.1))
        killed += process.returncode == -signal.SIGKILL
        for step in checkpoints.steps(broken):
            assert not checkpoints.damage(broken / "checkpoints" / str(step))
        survived = max(checkpoints.steps(broken), default=0)
        assert survived >= newest, "a kill lost a checkpoint"
        newest = survived
        assert survived < num_steps, "the run is too short for so many kills"
    subprocess.run(command(broken, num_steps), check=True, capture_output=True)
    jax.tree.map(
        np.testing.assert_array_equal,
        saved_state(broken, num_steps),
        saved_state(whole, num_steps),
    )


def test_told_to_end_a_run_saves_and_says_how_to_go_on(command, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, 1000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while num_lines(tmp_path) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    # Meanwhile nobody else may train there.
    second = subprocess.run(
        command(tmp_path, 1000), check=False, capture_output=True, text=True
    )
    assert second.returncode == 2
    assert f"error: {tmp_path}: in use by process {process.pid} on" in second.stderr
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 0
    (line,) = (x for x in out.splitlines() if x.startswith("stopped at"))
    assert line.endswith("; resume with the same command")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines]
    assert line == f"stopped at {steps[-1]}; resume with the same command"
    assert checkpoints.newest(tmp_path) == steps[-1]
