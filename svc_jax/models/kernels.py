"""What kernels for TPUs share in which a segment goes through layers without leaving.

XLA reads each layer's arrays from memory and writes them back. In these kernels a
segment stays in a core's own memory (VMEM), with rows of zeros on either side, while it
goes through all layers of a stack; the grid is segments by layers.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

MAX_ROWS = 800  # of a tile: its values wait in registers and near them
VMEM_BYTES = 112 * 2**20  # of the 128 MiB that a core of v5e or v6e has


# Which part of an array a kernel sees while a segment goes through a layer.
PARTS = {
    "segment": lambda segment, layer: (segment,),
    "layer": lambda segment, layer: (layer,),
    "both": lambda segment, layer: (segment, layer),
    "before": lambda segment, layer: (segment, jnp.maximum(layer - 1, 0)),
}


def call(
    kernel, dilations, given, found, memory, work, interpret, backwards=False
) -> dict:
    """Runs a kernel for every segment, and for each of them every layer.

    Args:
      kernel: (layer, dilation, **references by the names of all below).
      dilations: of the weights.
      given: name -> (one of PARTS, array).
      found: name -> (one of PARTS, shape of a part, type).
      memory: name -> shape of what stays from a layer to the next, float32.
      work: for a row in a layer, (products with [128, 128] matrices, curves as tanh).
      interpret: whether and how to do without a TPU.
      backwards: the last layer comes first.

    Returns:
      name -> array, of those in found.
    """
    num_layers = len(dilations)

    def block(part, shape):
        def index(segment, step, _):
            layer = num_layers - 1 - step if backwards else step
            return (*PARTS[part](segment, layer), *[0] * len(shape))

        # The next segment waits until there is room; the next layer's part is fetched.
        copies = pl.Buffered(1) if part == "segment" else None
        leading = [None] * len(PARTS[part](0, 0))
        return pl.BlockSpec((*leading, *shape), index, pipeline_mode=copies)

    def body(dilations, *references):
        step = pl.program_id(1)
        layer = num_layers - 1 - step if backwards else step
        names = (*given, *found, *memory)
        kernel(layer, dilations[layer], **dict(zip(names, references, strict=True)))

    def run(*arrays):
        batch = arrays[0].shape[0]
        leading = {"segment": (batch,), "both": (batch, num_layers)}
        results = tuple(
            jax.ShapeDtypeStruct((*leading[part], *shape), dtype)
            for part, shape, dtype in found.values()
        )
        rows = batch * num_layers * arrays[0].shape[-2]
        moved = sum(map(_num_bytes, results)) + sum(
            _num_bytes(array) * (batch if part == "layer" else 1)
            for (part, _), array in zip(given.values(), arrays, strict=True)
        )
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, num_layers),
                in_specs=[
                    block(part, array.shape[len(PARTS[part](0, 0)) :])
                    for part, array in given.values()
                ],
                out_specs=[block(part, shape) for part, shape, _ in found.values()],
                scratch_shapes=[
                    pltpu.VMEM(shape, jnp.float32) for shape in memory.values()
                ],
            ),
            out_shape=results,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * rows * work[0] * 128**2,
                bytes_accessed=moved,
                transcendentals=rows * work[1],
            ),
            interpret=interpret,
        )(jnp.asarray(dilations, jnp.int32), *arrays)

    if "data" in jax.sharding.get_abstract_mesh().axis_names:
        split, whole = PartitionSpec("data"), PartitionSpec()
        run = jax.shard_map(
            run,
            in_specs=tuple(
                whole if part == "layer" else split for part, _ in given.values()
            ),
            out_specs=(split,) * len(found),
            check_vma=False,
        )
    arrays = [array for _, array in given.values()]
    return dict(zip(found, run(*arrays), strict=True))


def _num_bytes(array) -> int:
    """In memory, where rows are of whole registers, of 128 lanes."""
    lanes = -(-array.shape[-1] // 128) * 128
    return array.size // array.shape[-1] * lanes * array.dtype.itemsize


def reach(dilations) -> int:
    """The rows of zeros on either side of a segment."""
    return -(-max(dilations) // 16) * 16


def by_rows(num_samples: int, step):
    """Calls step for one tile of rows after the other."""
    size, count = tiles(num_samples)

    def body(index, _):
        step(pl.ds(pl.multiple_of(index * size, size), size))
        return 0

    lax.fori_loop(0, count, body, 0)


def tiles(num_samples: int) -> tuple[int, int]:
    """(Rows of a tile, how many tiles hold all samples and the fewest others)."""
    count = -(-num_samples // MAX_ROWS)
    return -(-num_samples // (16 * count)) * 16, count


def until(length: int, values, rows):
    """Zeros for the rows after the last sample."""
    row = rows.start + lax.broadcasted_iota(jnp.int32, values.shape, 0)
    return jnp.where(row < length, values, 0.0)


def moved(rows, offset):
    """The rows that are later by an offset."""
    return pl.ds(rows.start + offset, rows.size)


def around(ref, rows, reach: int, dilation):
    """Of what has edges, the rows a dilation before, a dilation after, and here."""
    return [ref[moved(rows, reach + by), :] for by in (-dilation, dilation, 0)]


def clear_edges(ref, reach: int):
    """Nothing is heard before the first sample and after the last."""
    edge = jnp.zeros((reach, ref.shape[1]), ref.dtype)
    ref[pl.ds(0, reach), :] = edge
    ref[pl.ds(ref.shape[0] - reach, reach), :] = edge


def product(x, kernel):
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def correlation(x, y):
    """Sum over rows: [rows, I], [rows, O] -> [I, O]."""
    return lax.dot_general(
        x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
