"""Checkpoints of a training state, and the run's own description beside them.

WORKDIR/checkpoints/STEP/    a state, metrics, and checksums.json of their files
WORKDIR/checkpoints/damaged/ what a resumed run found not to be as it was saved
WORKDIR/lock                 held by the process that trains
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import threading

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from svc_jax import metrics, sharding
from svc_jax.errors import UserError

# Keys that may change between two starts of one run: they change what is written or
# how long it trains, not what is trained.
HARMLESS = (
    "log_every",
    "checkpoint_every",
    "eval_every",
    "eval_batches",
    "keep",
    "keep_every",
    "guard.in_a_row",
    "guard.rollbacks",
    "data.dir",
    "num_model",
    "accumulate",
    "remat",
    "convolution",
)
CHECKSUMS = "checksums.json"  # sha256 of every file of a checkpoint
TRASH, DAMAGED = "trash", "damaged"
# As errors say it, those of tensorstore too.
DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def _folder(workdir) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def manager(
    workdir, *, keep: int | None, keep_every: int | None = None
) -> ocp.CheckpointManager:
    """Saves the checkpoints of a run, and deletes old ones.

    Args:
      workdir: of the run.
      keep: how many of the last ones stay, None for all; and the one of the lowest
        loss stays.
      keep_every: so do those whose step is a multiple of it.
    """
    stay = [
        policies.LatestN(keep),
        policies.BestN(get_metric_fn=_loss, reverse=True, n=1),
    ]
    if keep_every:
        stay.append(policies.EveryNSteps(keep_every))
    path = _folder(workdir)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(stay),
        best_fn=_loss,
        best_mode="min",
        cleanup_tmp_directories=True,  # of saves that a kill cut off
        # A kill during a plain deletion leaves half a step that is still listed.
        todelete_subdir=TRASH,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(path)),
    )
    return ocp.CheckpointManager(path, options=options)


def _loss(saved_metrics) -> float:
    return saved_metrics["loss"]


def save(checkpoints: ocp.CheckpointManager, step: int, state, loss: float = math.inf):
    """Saves in the background; the state may be donated as soon as this returns.

    Args:
      checkpoints: from `manager`.
      step: updates done.
      state: what `restore` gives back.
      loss: of the validation; where there was none, infinity: never the best.

    Raises:
      UserError: if the disk has no room for it.
    """
    checkpoints.wait_until_finished()
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(checkpoints.directory).free
    if free < needed:
        raise UserError(
            f"{checkpoints.directory}: a checkpoint takes {needed / 1e6:.1f} MB, but"
            f" {free / 1e6:.1f} are free; make room and resume with the same command."
        )
    loss = float(loss) if math.isfinite(loss) else math.inf
    checkpoints.save(step, args=ocp.args.StandardSave(state), metrics={"loss": loss})


@contextlib.contextmanager
def disk_full_in_one_line(workdir):
    """Says by a UserError that the disk is full, wherever that came to light."""
    try:
        yield
    except (OSError, ValueError) as error:
        if any(words in str(error) for words in DISK_FULL):
            raise UserError(
                f"{workdir}: the disk is full; make room and resume with the same"
                " command."
            ) from error
        raise


def _seal(folder: pathlib.Path):
    """Writes the checksums of a checkpoint that is complete but not yet renamed."""
    for partial in folder.glob("*.orbax-checkpoint-tmp*"):
        (partial / CHECKSUMS).write_text(json.dumps(_checksums(partial), indent=2))
    shutil.rmtree(folder / TRASH, ignore_errors=True)


def _checksums(checkpoint: pathlib.Path) -> dict[str, str]:
    """sha256 by file, of the folders of a checkpoint; beside them Orbax keeps notes."""
    found = {}
    for folder in sorted(path for path in checkpoint.iterdir() if path.is_dir()):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(checkpoint).as_posix()
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where nothing is."""
    if not (checkpoint / CHECKSUMS).exists():  # of an earlier version
        metrics.say(f"note: {checkpoint} has no {CHECKSUMS} and cannot be checked")
        return None
    try:
        saved = json.loads((checkpoint / CHECKSUMS).read_text())
    except ValueError:
        return f"{CHECKSUMS} cannot be read"
    found = _checksums(checkpoint)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            state = "has changed" if name in found else "is missing"
            return f"{name} {state}"
    return None


def steps(workdir) -> list[int]:
    """Steps of the checkpoints of a run, the newest first."""
    folder = _folder(workdir)
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def newest(workdir) -> int | None:
    """Step of the newest checkpoint that is as it was saved; None if there is none.

    Those that are damaged are named aloud.

    Raises:
      UserError: if all are.
    """
    found = steps(workdir)
    for step in found:
        fault = damage(_folder(workdir) / str(step))
        if fault is None:
            return step
        metrics.say(
            f"warning: checkpoint {step} is damaged ({fault}); the one before is tried"
        )
    if found:
        raise UserError(
            f"{_folder(workdir)}: every checkpoint is damaged; restore one from a copy,"
            " or choose another --workdir."
        )
    return None


def _set_aside_after(workdir, step: int | None):
    """Moves the checkpoints after a step away, so that they can be saved anew."""
    for later in steps(workdir):
        if step is not None and later > step:
            target = _folder(workdir) / DAMAGED / str(later)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(_folder(workdir) / str(later), target)


def restore(workdir, step: int, abstract_state, shardings=None):
    """A checkpoint, or a part of it, each leaf where its sharding says.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      abstract_state: shapes and types, of what of the state is wanted.
      shardings: of every leaf; None for this machine's first device.

    Raises:
      UserError: if it does not hold what is wanted.
    """
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract_state)
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract_state,
        shardings,
    )
    path = _folder(workdir) / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(
            path / "default",
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    missing = [
        jax.tree_util.keystr(name, simple=True, separator="/")
        for name, leaf in jax.tree_util.tree_leaves_with_path(found)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if missing:
        raise UserError(
            f"{path}: holds no {missing[0]} ({len(missing)} of the wanted arrays are"
            " missing); another version of svc_jax wrote it: go on with that one, or"
            " train anew in another workdir."
        )
    return found


def begin(checkpoints: ocp.CheckpointManager, init, rng, mesh):
    """The newest intact checkpoint of a run, or a fresh state, born sharded.

    Args:
      checkpoints: from `manager`.
      init: rng -> state.
      rng: key for a fresh state.
      mesh: where it is to live.

    Returns:
      (state, shardings of its leaves).

    Raises:
      UserError: if every checkpoint is damaged.
    """
    abstract = jax.eval_shape(init, rng)
    shardings = sharding.state_shardings(abstract, mesh)
    checkpoints.wait_until_finished()
    workdir = checkpoints.directory.parent
    step = newest(workdir)
    multihost_utils.sync_global_devices("every process has chosen a checkpoint")
    if jax.process_index() == 0:
        _set_aside_after(workdir, step)
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    checkpoints.reload()
    if step is None:
        return jax.jit(init, out_shardings=shardings)(rng), shardings
    return restore(workdir, step, abstract, shardings), shardings


@contextlib.contextmanager
def lock(workdir):
    """Keeps other processes from training in a workdir; a kill ends that too.

    Of several processes of one run the first holds it.

    Raises:
      UserError: if a process trains there.
    """
    if jax.process_index():
        yield
        return
    path = pathlib.Path(workdir) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{workdir}: in use by {file.read().strip()}; wait for its end or"
                " choose another --workdir."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def preemption(checkpoints: ocp.CheckpointManager):
    """Hears SIGTERM, which schedulers send some time before they kill.

    Yields:
      Function of the step: whether to save and stop; several processes are all told at
      the same step.
    """
    if jax.distributed.is_initialized():  # then JAX hears it
        yield checkpoints.reached_preemption
        return
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        yield lambda step: heard.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _flatten(config: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def write_json(path, value):
    """Writes JSON under a temporary name, then renames it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def has_begun(workdir) -> bool:
    """Whether a workdir holds a checkpoint; until then it may become any run's."""
    return bool(steps(workdir))


def claim_workdir(workdir, config: ml_collections.ConfigDict):
    """Records a run's config in its workdir, or checks it against the recorded one.

    Raises:
      UserError: if the workdir holds a run of another config; says where they differ.
    """
    path = pathlib.Path(workdir) / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if path.exists() and has_begun(workdir):
        found = _flatten(json.loads(path.read_text()))
        asked = _flatten(wanted)
        changed = {
            key: f"{key} {found.get(key)!r} -> {asked.get(key)!r}"
            for key in sorted(found.keys() | asked.keys())
            if found.get(key) != asked.get(key)
        }
        refused = [line for key, line in changed.items() if key not in HARMLESS]
        if refused:
            raise UserError(
                f"{workdir}: holds a run of another config ({'; '.join(refused)});"
                " choose another --workdir or the old values."
            )
        for line in changed.values():
            metrics.say(f"resumed with another {line}")
    write_json(path, wanted)


def load_config(workdir) -> ml_collections.ConfigDict:
    """The config of the run in a workdir.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: no config.json, so no trained model; train first.")
    try:
        # Dotted keys: an export names its files in its config.
        values = json.loads(path.read_text())
        return ml_collections.ConfigDict(values, allow_dotted_keys=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it.") from error
