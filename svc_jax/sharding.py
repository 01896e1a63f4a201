"""Where arrays live: the mesh, its axes, and the rule for every parameter."""

import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "model")

# The first pattern found in a leaf's path says how it is split; the networks are
# small, so every chip holds all of them and only the batch is split.
RULES = (
    (r"(generator|discriminator|network|ema_params)\b", PartitionSpec()),
    (r"(step$|guard/)", PartitionSpec()),
)


def make_mesh(num_model: int = 1) -> Mesh:
    """A mesh of all devices: `data` by `model`.

    Raises:
      ValueError: if the devices cannot be divided so.
    """
    count = jax.device_count()
    if count % num_model:
        raise ValueError(f"{count} devices cannot be divided by num_model {num_model}.")
    shape = (count // num_model, num_model)
    # Auto: with make_mesh's default, Explicit, nn.Embed cannot gather.
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types)


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
    """

    def rule(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in RULES:
            if re.search(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no rule in sharding.RULES names {name}.")

    return jax.tree_util.tree_map_with_path(rule, abstract_state)


def to_global(local_batch, mesh: Mesh):
    """This host's part of a batch -> arrays over all hosts, split over `data`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), local_batch
    )


def put_replicated(tree, mesh: Mesh):
    """A copy of host arrays on every device."""
    return jax.device_put(tree, replicated(mesh))
