"""Checkpoints of a training state, and the run's own description beside them."""

import json
import os
import pathlib

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath

from svc_jax import sharding
from svc_jax.errors import UserError

# Keys that may change between two starts of one run: they change what is written or
# how long it trains, not what is trained.
HARMLESS = (
    "log_every",
    "checkpoint_every",
    "eval_every",
    "keep",
    "data.dir",
    "num_model",
    "accumulate",
    "remat",
)


def manager(workdir, *, keep: int | None) -> ocp.CheckpointManager:
    """Keeps the last checkpoints of a run under `workdir/checkpoints`; None: all."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        # A kill during a plain deletion leaves half a step that is still listed.
        todelete_subdir="trash",
    )
    path = epath.Path(os.path.abspath(workdir)) / "checkpoints"
    return ocp.CheckpointManager(path, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state):
    """Saves in the background; the state may be donated as soon as this returns."""
    checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, abstract_state, shardings=None):
    """The newest checkpoint, each leaf where its sharding says.

    Args:
      checkpoints: from `manager`; it must hold a step.
      abstract_state: shapes and types of the state.
      shardings: of every leaf; None for this machine's first device.
    """
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract_state)
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract_state,
        shardings,
    )
    step = checkpoints.latest_step()
    return checkpoints.restore(step, args=ocp.args.StandardRestore(target))


def begin(checkpoints: ocp.CheckpointManager, init, rng, mesh):
    """The newest checkpoint of a run, or a fresh state, born sharded.

    Args:
      checkpoints: from `manager`.
      init: rng -> state.
      rng: key for a fresh state.
      mesh: where it is to live.

    Returns:
      (state, shardings of its leaves).
    """
    abstract = jax.eval_shape(init, rng)
    shardings = sharding.state_shardings(abstract, mesh)
    if checkpoints.latest_step() is None:
        return jax.jit(init, out_shardings=shardings)(rng), shardings
    return restore(checkpoints, abstract, shardings), shardings


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
    folder = pathlib.Path(workdir) / "checkpoints"
    return folder.is_dir() and any(step.name.isdigit() for step in folder.iterdir())


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
        changed = [
            f"{key} {found.get(key)!r} -> {asked.get(key)!r}"
            for key in sorted(found.keys() | asked.keys())
            if found.get(key) != asked.get(key) and key not in HARMLESS
        ]
        if changed:
            raise UserError(
                f"{workdir}: holds a run of another config ({'; '.join(changed)});"
                " choose another --workdir or the old values."
            )
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
