"""Where arrays live: the hosts, the mesh, its axes, and the rule for every parameter."""

import functools
import os
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from svc_jax.errors import UserError

MESH_AXES = ("data", "model")

# The first pattern found in a leaf's path says what its last axis, the channels, is
# split over. Layers of one channel and filters along time are whole, and so is the
# recogniser, which is small.
RULES = (
    (r"(^|/)(step|count)$", None),
    (r"^(network|batch_stats|prior|guard)\b", None),
    (r"/output\d*(_norm)?/|/filter\d+$", None),
    (
        r"^(generator|discriminator|ema_params)/.*/(direction|kernel|depthwise)$",
        "model",
    ),
    (r"^(generator|discriminator|ema_params)/.*/(scale|bias|gain|embedding)$", "model"),
)

# Set by what starts several processes, whose places JAX then finds: srun, an indexed
# Kubernetes Job, a pod of TPU hosts.
LAUNCHERS = ("SLURM_STEP_NODELIST", "JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES")


def join_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
):
    """Makes this process one of those that train together; before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0, or `auto` for JAX to find all three; None:
        `auto` under one of LAUNCHERS, elsewhere this process trains alone.
      num_processes: how many there are; 1: this one trains alone.
      process_id: which of them this is, from 0.

    Raises:
      UserError: if the others are not to be found.
    """
    if coordinator is None and any(name in os.environ for name in LAUNCHERS):
        coordinator = "auto"
    if coordinator is None or num_processes == 1:
        return
    if coordinator != "auto" and None in (num_processes, process_id):
        raise UserError(
            f"--coordinator={coordinator} needs --num_processes and --process_id too."
        )
    places = () if coordinator == "auto" else (coordinator, num_processes, process_id)
    try:
        # One that fails waits at its end for the others, which wait for it.
        jax.distributed.initialize(*places, shutdown_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"--coordinator={coordinator}: the other processes are not found ({said});"
            " name --coordinator=HOST:PORT, --num_processes and --process_id, or train"
            " alone with --num_processes=1."
        ) from error


def once(work, *args):
    """Process 0 does `work` while the others wait; its UserError is raised by all.

    For what is written into the workdir, which all hosts see.
    """
    said = np.zeros(2048, np.uint8)
    if jax.process_index() == 0:
        try:
            work(*args)
        except UserError as error:
            text = str(error).encode()[: said.size]
            said[: len(text)] = list(text)
    said = multihost_utils.broadcast_one_to_all(said)
    if said.any():
        raise UserError(bytes(said).rstrip(b"\0").decode(errors="replace"))


def make_mesh(num_model: int = 1) -> Mesh:
    """A mesh of all devices: `data` by `model`.

    Host by host, so that each one feeds consecutive examples of a batch, and the
    devices of a group of `model` are as near each other as can be.

    Raises:
      UserError: if the devices cannot be divided so.
    """
    return mesh_of(jax.devices(), num_model)


def mesh_of(devices, num_model: int) -> Mesh:
    """As `make_mesh`, of devices that may be elsewhere."""
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    count = len(devices)
    local = sum(d.process_index == devices[0].process_index for d in devices)
    if count % num_model or (local % num_model and num_model % local):
        raise UserError(
            f"{count} devices, {local} a host, cannot be divided by config.num_model"
            f" {num_model}; choose a divisor."
        )
    # Auto: with Explicit axes nn.Embed cannot gather.
    types = (AxisType.Auto,) * len(MESH_AXES)
    grid = np.asarray(devices).reshape(-1, num_model)
    return Mesh(grid, MESH_AXES, axis_types=types)


def devices_of_slice(name: str) -> list:
    """The chips of a slice of TPUs that is elsewhere, to compile for.

    Args:
      name: CHIP:AxB or CHIP:AxBxC, as v5e:4x4.

    Raises:
      RuntimeError, ValueError, NotImplementedError: if there is no libtpu, or no such
        slice.
    """
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is opened
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def host_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this host feeds, and how many parts there are.

    Hosts that share the groups of `model` feed the same part.
    """
    size = mesh.shape["data"]
    rows = batch_sharding(mesh).addressable_devices_indices_map((size,))
    own = {place.indices(size)[0] for (place,) in rows.values()}
    return min(own) // len(own), size // len(own)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(abstract_state, mesh: Mesh):
    """A sharding for every leaf of a state, by RULES.

    Raises:
      ValueError: if no rule names a leaf.
      UserError: if the channels of a leaf cannot be split over the mesh.
    """

    def rule(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in RULES:
            if re.search(pattern, name):
                return NamedSharding(mesh, last_axis(name, leaf.shape, axis))
        raise ValueError(f"no rule in sharding.RULES names {name}.")

    def last_axis(name, shape, axis):
        if axis is None:
            return PartitionSpec()
        if shape[-1] % mesh.shape[axis]:
            raise UserError(
                f"{name}: {shape[-1]} channels cannot be split over config.num_model"
                f" {mesh.shape[axis]}; choose a divisor."
            )
        return PartitionSpec(*(None,) * (len(shape) - 1), axis)

    return jax.tree_util.tree_map_with_path(rule, abstract_state)


def compiled_update(update, shardings, mesh: Mesh):
    """An update under `jit`; a state takes the place of the one before.

    Args:
      update: (state, ...) -> (state, metrics).
      shardings: of the state, from `state_shardings`.
      mesh: that they are of.
    """
    return jax.jit(
        on_mesh(update, mesh),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def on_mesh(function, mesh: Mesh):
    """A function within which kernels know over what their arrays are split."""

    @functools.wraps(function)
    def wrapped(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return wrapped


def to_global(local_batch, mesh: Mesh):
    """This host's part of a batch -> arrays over all hosts, split over `data`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), local_batch
    )


def put_replicated(tree, mesh: Mesh):
    """A copy of host arrays on every device."""
    return jax.device_put(tree, replicated(mesh))
