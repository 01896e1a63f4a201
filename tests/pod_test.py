"""Several processes train as one: launch/local_pod.sh, the true multi-host path."""

import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from svc_jax import builders, checkpoints, runs, sharding, steps

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
# Compiles faster and runs slower.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
# As little to compile as there can be.
SMALLEST = {
    "num_steps": 1,
    "geometry.segment_samples": 1600,
    "generator.dilations": (1,),
    "generator.loudness_dilations": (1,),
    "generator.sine_dilations": (1,),
    "discriminator.dilations": (1, 1),
    "loss.fft_sizes": (128,),
}
# A phase's program; only the first in the plain suite.
ALIGNED = {"phases.adversarial": 1.0, "phases.mixup": 1.0}
ALL = {"phases.adversarial": 0.0, "phases.mixup": 0.0}


def local_pod(processes: int, devices: int, *flags: str, environment=QUICKLY):
    """Runs launch/local_pod.sh once, by this Python."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", LAUNCH / "local_pod.sh", str(processes), str(devices), *flags],
        check=False,
        env=os.environ | environment | {"RESTARTS": "0", "PATH": path},
        capture_output=True,
        text=True,
    )


def flags_of(config, workdir) -> tuple[str, str]:
    """What has svc_jax.train train by that config."""
    file = workdir.with_suffix(".py")
    file.write_text(
        "import json, ml_collections\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return f"--config={file}", f"--workdir={workdir}"


def start(config, workdir, processes: int, devices: int, environment=QUICKLY):
    """Trains by a pod of this machine; returns its metrics by step."""
    flags = flags_of(config, workdir)
    child = local_pod(processes, devices, *flags, environment=environment)
    assert child.returncode == 0, child.stderr[-3000:]
    return metrics_of(workdir)


def metrics_of(workdir) -> dict[int, dict]:
    by_step: dict[int, dict] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        by_step.setdefault(values["step"], {}).update(values)
    return by_step


def restored(config, workdir, devices: int):
    """The newest checkpoint of a run, on a mesh of some of this process's devices."""
    _, card = runs.find_dataset(config, workdir)
    extractor, _ = runs.load_frozen(config, card, workdir)
    networks = builders.networks(config, len(card.singers), extractor)
    optimizers = builders.run_optimizers(config)
    init = functools.partial(steps.init_state, networks, optimizers)
    abstract = jax.eval_shape(init, jax.random.key(0))
    grid = np.asarray(jax.devices()[:devices]).reshape(-1, 1)
    mesh = jax.sharding.Mesh(grid, sharding.MESH_AXES)
    shardings = sharding.state_shardings(abstract, mesh)
    step = checkpoints.newest(workdir)
    return checkpoints.restore(workdir, step, abstract, shardings)


def assert_same_training(found, expected, tolerance: float):
    """First losses and gradients: RAdam's mean of one step is a tenth of the gradient."""
    found, expected = map(jax.device_get, (found, expected))
    for network in ("generator", "discriminator"):
        one, other = (getattr(s, network).opt_state[1].mu for s in (found, expected))
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(other))
        jax.tree.map(
            lambda a, b, atol=tolerance * largest: np.testing.assert_allclose(
                a, b, rtol=tolerance, atol=atol
            ),
            one,
            other,
        )


def assert_same_metrics(found, expected, tolerance: float, step: int = 1):
    found, expected = found[step], expected[step]
    assert found.keys() == expected.keys()
    for name in found:
        if name.split("/")[0] in ("time", "speed", "memory"):
            continue
        assert found[name] == pytest.approx(expected[name], rel=tolerance), name


@pytest.fixture(scope="module")
def pod(tiny_config, tmp_path_factory):
    """A run of 2 processes x 4 devices, the first phase alone."""
    config = tiny_config(**SMALLEST, **ALIGNED)
    workdir = tmp_path_factory.mktemp("pod") / "two"
    return config, workdir, start(config, workdir, 2, 4)


def test_two_processes_train_as_one(pod, tmp_path):
    config, workdir, metrics = pod
    alone = tmp_path / "one"
    assert_same_metrics(metrics, start(config, alone, 1, 8), 1e-3)
    assert_same_training(restored(config, workdir, 8), restored(config, alone, 8), 1e-3)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_checkpoint_of_a_pod_is_restored_on_any_devices(pod, devices):
    config, workdir, _ = pod
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(restored(config, workdir, devices)),
        jax.device_get(restored(config, workdir, 8)),
    )


def test_all_processes_end_in_one_line_when_the_first_refuses(pod):
    _, workdir, _ = pod
    flags = f"--config={workdir.with_suffix('.py')}", f"--workdir={workdir}"
    child = local_pod(2, 4, *flags, "--config.seed=7")
    assert child.returncode == 2
    assert "seed 0 -> 7" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.proof
def test_every_term_is_the_same_on_any_grid_of_processes(tiny_config, tmp_path):
    config = tiny_config(**SMALLEST, **ALL)
    found = {}
    for processes, devices in ((1, 1), (1, 8), (2, 4)):
        workdir = tmp_path / f"{processes}x{devices}"
        metrics = start(config, workdir, processes, devices)
        found[processes, devices] = metrics, restored(config, workdir, 1)
    expected_metrics, expected = found.pop((1, 1))
    for metrics, state in found.values():
        assert_same_metrics(metrics, expected_metrics, 1e-3)
        assert_same_training(state, expected, 1e-3)


@pytest.mark.proof
@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_of_eight_devices_goes_on_with_fewer(tiny_config, tmp_path, devices):
    config = tiny_config(**{**SMALLEST, "num_steps": 4}, **ALIGNED)
    whole = start(config, tmp_path / "eight", 1, 8)
    shutil.copytree(tmp_path / "eight", tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer" / "checkpoints" / "4")
    again = start(config, tmp_path / "fewer", 1, devices)
    for step in (3, 4):
        assert_same_metrics(again, whole, 0.02, step)


@pytest.mark.proof
def test_when_one_host_is_told_to_end_all_save_the_same_step(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    config = tiny_config(**{**SMALLEST, "num_steps": 100_000}, **ALIGNED)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "svc_jax.train", *flags_of(config, workdir)]
    command += [f"--coordinator=localhost:{port}", "--num_processes=2"]
    hosts = [
        subprocess.Popen(
            [*command, f"--process_id={host}"],
            env=os.environ | QUICKLY | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and len(metrics_of(workdir)) >= 2):
        assert all(host.poll() is None for host in hosts), hosts[0].communicate()[0]
        time.sleep(0.1)
    hosts[1].send_signal(signal.SIGTERM)
    told = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], told
    saved = checkpoints.newest(workdir)
    assert f"stopped at {saved}; resume with the same command" in told[0]


@pytest.mark.proof
def test_a_pod_goes_back_and_gives_up_as_one(tiny_config, tmp_path):
    config = tiny_config(
        **{
            **SMALLEST,
            "num_steps": 20,
            "checkpoint_every": 1,
            "optimizer.generator_learning_rate": 1e38,  # finite once
            "guard.in_a_row": 2,
            "guard.rollbacks": 1,
        },
        **ALIGNED,
    )
    child = local_pod(2, 1, *flags_of(config, tmp_path / "run"))
    assert child.returncode == 2
    assert "going back to step 1, to other batches" in child.stdout + child.stderr
    assert "giving up after 1 rollbacks" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.proof
def test_bfloat16_learns_as_float32_does(tmp_path):
    """The curve of L_recon on the demo, the mean of the last steps, within 2 %."""
    from configs import fast

    curves = {}
    for precision in builders.PRECISIONS:
        config = fast.get_config("demo")
        config.num_steps = int(os.environ.get("SVC_JAX_PROOF_STEPS", "200"))
        config.precision = precision
        config.log_every = 1
        config.eval_every = config.num_steps
        workdir = tmp_path / precision
        if curves:  # the same dataset
            shutil.copytree(tmp_path / "float32" / "data", workdir / "data")
        curve = start(config, workdir, 1, 1, environment={})
        values = [curve[step]["loss/spectral"] for step in sorted(curve)]
        curves[precision] = values
        print(precision, np.round(values[:: max(1, len(values) // 10)], 3))
    last = max(1, len(curves["float32"]) // 10)
    exact, rough = (np.mean(curve[-last:]) for curve in curves.values())
    assert rough == pytest.approx(exact, rel=0.02)
