"""Checkpoints of a toy state: damage, deletion, full disks, locks, signals."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import checkpoints, sharding
from svc_jax.errors import UserError


def toy_state(step: int):
    """A state whose every value tells its step."""
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": rng.normal(size=(64, 33)).astype(np.float32)}}
    return {"step": np.int32(step), "generator": params, "ema_params": params}


def init(_):
    return jax.tree.map(jnp.asarray, toy_state(0))


def save_all(workdir, steps, losses=None, **options):
    with checkpoints.manager(workdir, **{"keep": None, **options}) as manager:
        for step in steps:
            loss = (losses or {}).get(step, np.inf)
            checkpoints.save(
                manager, step, jax.tree.map(jnp.asarray, toy_state(step)), loss
            )


def begin(workdir, num_devices: int = 1):
    mesh = jax.sharding.Mesh(
        np.asarray(jax.devices()[:num_devices]).reshape(-1, 1), sharding.MESH_AXES
    )
    with checkpoints.manager(workdir, keep=None) as manager:
        return checkpoints.begin(manager, init, jax.random.key(0), mesh)[0]


def assert_is_of(state, step: int):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), toy_state(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("saved")
    save_all(workdir, (1, 2))
    return workdir


@pytest.fixture
def run(saved, tmp_path) -> pathlib.Path:
    """A workdir with checkpoints 1 and 2, to damage."""
    return shutil.copytree(saved, tmp_path / "run")


def state_files(workdir, step: int) -> list[pathlib.Path]:
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
    """Flips a bit of a file, somewhere."""
    content = bytearray(path.read_bytes())
    place = np.random.default_rng(len(content)).integers(len(content))
    content[place] ^= 1 << int(place) % 7
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, truncate, os.unlink])
def test_damage_to_any_file_of_the_newest_checkpoint_is_harmless(run, harm, capsys):
    """Either it is noticed, and the one before taken, or nothing is lost by it."""
    noticed = 0
    for path in state_files(run, 2):
        content = path.read_bytes()
        harm(path)
        newest = checkpoints.newest(run)
        state = checkpoints.restore(run, newest, jax.eval_shape(init, 0))
        assert_is_of(state, newest)
        if newest == 1:
            noticed += 1
            assert "warning: checkpoint 2 is damaged (" in capsys.readouterr().out
        else:  # Orbax's notes, of which nothing is read
            assert path.parent.name == "2"
        path.write_bytes(content)
    assert noticed >= 8
    assert checkpoints.newest(run) == 2


def test_a_damaged_checkpoint_is_set_aside_and_saved_anew(run, capsys):
    truncate(max(state_files(run, 2), key=lambda path: path.stat().st_size))
    assert_is_of(begin(run), 1)
    assert "checkpoint 2 is damaged (default/" in capsys.readouterr().out
    assert checkpoints.steps(run) == [1]
    assert (run / "checkpoints" / "damaged" / "2").is_dir()
    save_all(run, (2, 3))
    assert_is_of(begin(run), 3)


def test_a_checkpoint_of_other_arrays_is_refused_by_name(run):
    wanted = {**jax.eval_shape(init, 0), "bias": jax.ShapeDtypeStruct((3,), "float32")}
    with pytest.raises(
        UserError, match="checkpoints/2: holds no bias .1 of the wanted"
    ):
        checkpoints.restore(run, 2, wanted)


def test_a_run_never_starts_anew_because_all_is_damaged(run):
    for step in (1, 2):
        flip(run / "checkpoints" / str(step) / "default" / "manifest.ocdbt")
    with pytest.raises(UserError, match="every checkpoint is damaged; restore one"):
        begin(run)
    assert checkpoints.steps(run) == [2, 1]


def test_a_checkpoint_without_checksums_is_taken_and_said(run, capsys):
    (run / "checkpoints" / "2" / checkpoints.CHECKSUMS).unlink()
    assert_is_of(begin(run), 2)
    assert "has no checksums.json and cannot be checked" in capsys.readouterr().out


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_checkpoint_of_eight_devices_goes_on_with_fewer(tmp_path, num_devices):
    state = begin(tmp_path, 8)
    assert len(state["generator"]["layer"]["kernel"].sharding.device_set) == 8
    with checkpoints.manager(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 5, state)
    resumed = begin(tmp_path, num_devices)
    assert (
        len(resumed["generator"]["layer"]["kernel"].sharding.device_set) == num_devices
    )
    assert_is_of(resumed, 0)


def test_the_last_the_best_and_every_so_many_stay(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: np.nan, 4: 2.0}
    save_all(tmp_path, range(1, 10), losses, keep=2, keep_every=4)
    assert checkpoints.steps(tmp_path) == [9, 8, 4, 2]
    # Known from the files, also after a start.
    save_all(tmp_path, (10, 11), {10: 0.5}, keep=1, keep_every=4)
    assert checkpoints.steps(tmp_path) == [11, 10, 8, 4]


def test_what_a_kill_left_is_removed(run):
    leftover = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    leftover.mkdir()
    trash = run / "checkpoints" / "trash" / "0"
    trash.mkdir(parents=True)
    save_all(run, (3, 4))
    assert not leftover.exists()
    assert not trash.exists()
    assert checkpoints.steps(run) == [4, 3, 2, 1]


def test_a_full_disk_is_known_before_anything_is_written(run, monkeypatch):
    usage = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"takes 0\.0 MB, but 0\.0 are free; make room"):
        save_all(run, (3,))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ValueError(
            "RESOURCE_EXHAUSTED: Error writing [OS error 28: No space left on device]"
        ),
    ],
)
def test_a_disk_that_fills_up_is_one_line(error):
    with (
        pytest.raises(UserError, match="runs/x: the disk is full; make room") as said,
        checkpoints.disk_full_in_one_line("runs/x"),
    ):
        raise error
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="else"), checkpoints.disk_full_in_one_line(""):
        raise ValueError("something else")


FILL = """
import sys, jax, numpy as np
from absl import logging
from svc_jax import checkpoints
from svc_jax.errors import UserError
logging.set_verbosity(logging.FATAL)
workdir, blind = sys.argv[1], sys.argv[2] == "blind"
if blind:  # as a quota is, which disk_usage does not know
    checkpoints.shutil.disk_usage = lambda _: type("Usage", (), {"free": 1e12})
rng = np.random.default_rng(0)
try:
    with (
        checkpoints.disk_full_in_one_line(workdir),
        checkpoints.manager(workdir, keep=None) as manager,
    ):
        for step in range(1, 99):
            state = {"x": jax.numpy.asarray(rng.normal(size=(300, 300)))}
            checkpoints.save(manager, step, state)
except UserError as error:
    print("said:", error)
found = checkpoints.steps(workdir)
print("kept:", len(found), [checkpoints.damage(checkpoints._folder(workdir) / str(s)) for s in found])
"""


@pytest.mark.parametrize("mode", ["", "blind"])
def test_a_disk_that_is_full_loses_nothing_that_was_saved(tmp_path, mode):
    mount = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.call([*mount, "true"]):
        pytest.skip("needs unshare, to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (
        f"mount -t tmpfs -o size=2m none {disk}"
        f" && exec {sys.executable} -c '{FILL}' {disk} '{mode}'"
    )
    child = subprocess.run(
        [*mount, command], check=True, capture_output=True, text=True
    )
    assert "said: " in child.stdout
    assert "make room and resume with the same command." in child.stdout
    kept = int(child.stdout.partition("kept: ")[2].split()[0])
    assert kept >= 3
    assert str([None] * kept) in child.stdout


def test_a_workdir_is_locked_while_a_run_lasts(tmp_path):
    in_use = rf"run: in use by process {os.getpid()} on"
    with (
        checkpoints.lock(tmp_path / "run"),
        pytest.raises(UserError, match=in_use),
        checkpoints.lock(tmp_path / "run"),
    ):
        pass
    with checkpoints.lock(tmp_path / "run"):
        pass


def test_a_signal_to_end_is_heard_while_a_run_lasts(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with (
        checkpoints.manager(tmp_path, keep=1) as manager,
        checkpoints.preemption(manager) as preempted,
    ):
        assert not preempted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preempted(2)
    assert signal.getsignal(signal.SIGTERM) is before
