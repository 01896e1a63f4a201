"""The launchers: what they would do, and that all start again when one dies."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
FLAGS = ("--config=configs/multi.py:small", "--config.data.dir=my data/it's")


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", LAUNCH / script, *map(str, arguments)],
        check=False,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a bash script in PATH under a name; it logs to `log` what it is called with."""
    log = tmp_path / "log"

    def put(name: str, body: str):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "$*" >>{log}\n{body}\n')
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    put.log = lambda: log.read_text().splitlines()
    return put


@pytest.mark.parametrize(
    ("script", "arguments", "tool"),
    [
        ("local_pod.sh", (2, 4), "python"),
        ("tpu_pod.sh", ("pod", "us-central2-b"), "gcloud"),
        ("gpu_slurm.sh", (), "srun"),
        ("k8s/train.sh", ("choir", "image:1", 2, 8), "kubectl"),
    ],
)
def test_a_dry_run_says_the_command_and_runs_nothing(command, script, arguments, tool):
    command(tool, "exit 1")
    child = run(script, "--dry_run", *arguments, *FLAGS)
    assert child.returncode == 0, child.stderr
    assert "svc_jax.train" in child.stdout
    assert FLAGS[0] in child.stdout
    with pytest.raises(FileNotFoundError):
        command.log()


@pytest.mark.parametrize("script", ["local_pod.sh", "tpu_pod.sh", "k8s/train.sh"])
def test_missing_arguments_are_said_with_the_usage(script):
    child = run(script, "one")
    assert child.returncode == 2
    assert child.stderr.startswith("usage: ")


def test_a_local_pod_tells_each_process_who_it_is():
    lines = run("local_pod.sh", "--dry_run", 2, 4, *FLAGS).stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert "JAX_NUM_CPU_DEVICES=4" in line
        assert f"--num_processes=2 --process_id={number} {' '.join(FLAGS)}" in line


# A stand-in for python: the port is asked of the real one; process 1 fails once, after
# process 0 has started, which would wait for it forever, as in a collective.
TRAINER = """
[[ $1 != -c ]] || { echo 12345; exit; }
[[ ! -e DIED ]] || exit 0
[[ $* != *--process_id=0* ]] || { touch STARTED; exec sleep 600; }
until [[ -e STARTED ]]; do sleep 0.01; done
touch DIED
exit CODE
"""


def trainer(folder: pathlib.Path, code: int) -> str:
    body = TRAINER.replace("DIED", str(folder / "died")).replace("CODE", str(code))
    return body.replace("STARTED", str(folder / "started"))


def test_when_one_process_dies_all_start_again(command, tmp_path):
    command("python", trainer(tmp_path, 137))
    child = run("local_pod.sh", 2, 4, *FLAGS)
    assert child.returncode == 0, child.stderr
    assert "code 137" in child.stderr
    started = [line for line in command.log() if "svc_jax.train" in line]
    assert sorted(line.partition("--process_id=")[2][0] for line in started) == [
        *"0011"
    ]


def test_an_error_that_a_user_can_mend_is_not_tried_again(command, tmp_path):
    command("python", trainer(tmp_path, 2))
    assert run("local_pod.sh", 2, 4, *FLAGS).returncode == 2
    assert len([line for line in command.log() if "svc_jax.train" in line]) == 2


def test_restarts_come_to_an_end(command):
    command("python", "[[ $1 != -c ]] || { echo 1; exit; }\nexit 9")
    child = run("local_pod.sh", 1, 4, *FLAGS, RESTARTS="2")
    assert child.returncode == 9
    assert child.stderr.count("code 9") == 3


def test_tpu_hosts_are_stopped_before_each_start(command, tmp_path):
    died = tmp_path / "died"
    command(
        "gcloud",
        f"[[ $* != *svc_jax.train* || -e {died} ]] || {{ touch {died}; exit 1; }}",
    )
    child = run("tpu_pod.sh", "pod", "here", *FLAGS, PAUSE="0")
    assert child.returncode == 0, child.stderr
    copied, installed, *rest = command.log()
    assert " scp " in copied
    assert "tar -xf" in installed
    kinds = ["train" if "svc_jax.train" in line else "stop" for line in rest]
    assert kinds == ["stop", "train"] * 2
    assert all("--worker=all" in line for line in command.log())
    # The shell of a host reads the flags as they were given.
    words = rest[1].partition("svc_jax.train ")[2]
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.splitlines() == ["--coordinator=auto", *FLAGS]


def test_slurm_ends_all_processes_and_starts_them_again(command, tmp_path):
    died = tmp_path / "died"
    command("srun", f"[[ -e {died} ]] || {{ touch {died}; exit 137; }}")
    assert run("gpu_slurm.sh", *FLAGS).returncode == 0
    assert (
        command.log()
        == [f"--kill-on-bad-exit=1 python -m svc_jax.train {' '.join(FLAGS)}"] * 2
    )
    command("srun", "exit 2")
    assert run("gpu_slurm.sh", *FLAGS).returncode == 2
    assert len(command.log()) == 3


def test_a_jobset_is_of_one_mind_about_its_hosts():
    yaml = pytest.importorskip("yaml")
    child = run("k8s/train.sh", "--dry_run", "choir", "image:1", 4, 8, *FLAGS)
    spec = yaml.safe_load(child.stdout)["spec"]
    (hosts,) = spec["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["args"] == [
        f"--coordinator=choir-{hosts['name']}-0-0.choir:8476",
        "--num_processes=4",
        "--process_id=$(JOB_COMPLETION_INDEX)",
        *FLAGS,
    ]
    # One pod's death fails the job, and a failed job starts all of them again.
    assert job["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] == 100
