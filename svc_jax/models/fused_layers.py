"""Stacks of gated layers as one program of a TPU's core, forward and backward.

XLA reads each layer's arrays from memory and writes them back. Here a whole segment
stays in the core's own memory (VMEM) while it goes through all layers; what crosses is
the input, the condition, the output, and of each layer what the way back begins with.
What they compute, in plain JAX, is `gated_layers.gated_layers`.

Two arrays of C channels share the 128 lanes of a register, C being 64: of the signal, what
the layers change and the first part of the condition; of a layer's change, the residual
and the skip; of a gate, its halves.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from svc_jax.models.gated_layers import Weights

MAX_ROWS = 800  # of a tile: its values wait in registers and near them
VMEM_BYTES = 112 * 2**20  # of the 128 MiB that a core of v5e or v6e has


def fused(
    x,
    condition,
    weights: Weights,
    dilations: Sequence[int],
    scale: float,
    interpret=False,
):
    """`gated_layers.gated_layers` by Pallas.

    Its products are of the type of x, its sums float32. Of arrays that are split over
    the axis `data` of the mesh at hand, each device computes its own part.
    """
    batch, num_samples, channels = x.shape
    rows, count = _tiles(num_samples)
    padding = (0, 0), (0, rows * count - num_samples), (0, 0)
    x, condition = jnp.pad(x, padding), jnp.pad(condition, padding)
    first, rest = jnp.split(condition, [condition.shape[-1] // 3], axis=-1)
    before, here, after = (weights.taps[:, k] for k in range(3))
    told = weights.condition if first.shape[-1] else jnp.zeros_like(here)
    gate = jnp.concatenate([before, after, here, told], axis=1)
    bias = jnp.broadcast_to(weights.gate_bias, (batch, *weights.gate_bias.shape[1:]))
    has_skips = weights.out.shape[-1] == 2 * channels
    unused = 2 * channels - weights.out.shape[-1]
    result = _run(
        (num_samples, tuple(dilations), scale, has_skips, interpret),
        x,
        first,
        rest,
        gate.astype(x.dtype),
        bias.astype(jnp.float32),
        jnp.pad(weights.out, ((0, 0), (0, 0), (0, unused))).astype(x.dtype),
        jnp.pad(weights.out_bias, ((0, 0), (0, unused))).astype(jnp.float32),
    )
    return result[:, :num_samples]


# What the kernels are given: x [B, N, C]; first and rest of the condition, [B, N, C] and
# [B, N, 2 C] or nothing; gate [L, R, 2 C], R = 4 C or 6 C, for the samples before and
# after, the one here, and the condition; bias [B, L, 2 C]; out [L, C, 2 C]; out_bias
# [L, 2 C]. In the signal, [N, 2 C], x and the first part are side by side.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(shape, x, first, rest, gate, bias, out, out_bias):
    given = (x, first, rest, gate, bias, out, out_bias)
    return _forward(shape, False, *given)["result"]


def _run_forward(shape, *given):
    found = _forward(shape, True, *given)
    return found["result"], (found["kept"], *given[1:])


def _run_backward(shape, saved, gradient):
    _, first, rest, gate, _, out, _ = saved
    found = _backward(shape, *saved, gradient)
    return (
        found["of_x"],
        found.get("of_first", first),  # there is none, or it is as empty
        found.get("of_rest", rest),
        found["of_gate"].sum(0).astype(gate.dtype),
        found["of_bias"][:, :, 0],
        found["of_out"].sum(0)[:, : out.shape[1]].astype(out.dtype),
        found["of_out_bias"].sum(0)[:, 0],
    )


_run.defvjp(_run_forward, _run_backward)


def _forward(shape, keep: bool, x, first, rest, gate, bias, out, out_bias) -> dict:
    """result [B, N, C], and if they are to be kept, all signals [B, L, N, 2 C]."""
    length, dilations, scale, has_skips, interpret = shape
    _, num_samples, channels = x.shape
    width = 2 * channels
    reach, dtype = _reach(dilations), x.dtype
    by_rows = functools.partial(_by_rows, num_samples)

    def kernel(
        layer,
        dilation,
        *,
        x,
        gate,
        bias,
        out,
        out_bias,
        result,
        signals,
        first=None,
        rest=None,
        kept=None,
        skips=None,
    ):
        now, then = signals.at[layer % 2], signals.at[1 - layer % 2]

        @pl.when(layer == 0)
        def _():
            _clear_edges(now, reach)
            _clear_edges(then, reach)

            @by_rows
            def _(rows):
                both = _beside(x, first, rows)
                now[_moved(rows, reach), :] = both
                if has_skips:
                    skips[rows, :] = jnp.zeros_like(both)

        @by_rows
        def _(rows):
            heard = _heard(now, rest, rows, reach, dilation, dtype)
            gated, _, _ = _gated(_product(heard, gate[...]) + bias[...])
            change = _product(gated.astype(dtype), out[...]) + out_bias[...]
            here = now[_moved(rows, reach), :]
            there = _halves((here + change) * scale, here)
            then[_moved(rows, reach), :] = _until(length, there, rows, num_samples)
            if has_skips:
                skips[rows, :] += change
            if keep:
                kept[rows, :] = here.astype(dtype)

        @pl.when(layer == len(dilations) - 1)
        def _():
            @by_rows
            def _(rows):
                if has_skips:
                    last = skips[rows, :][:, channels:]
                else:
                    last = then[_moved(rows, reach), :][:, :channels]
                result[rows, :] = last.astype(dtype)

    given = {
        "x": ("segment", x),
        "gate": ("layer", gate),
        "bias": ("both", bias[:, :, None]),
        "out": ("layer", _padded(out)),
        "out_bias": ("layer", out_bias[:, None]),
    }
    found = {"result": ("segment", (num_samples, channels), dtype)}
    memory = {"signals": (2, num_samples + 2 * reach, width)}
    if first.shape[-1]:
        given |= {"first": ("segment", first), "rest": ("segment", rest)}
    if has_skips:
        memory["skips"] = (num_samples, width)
    if keep:
        found["kept"] = ("both", (num_samples, width), dtype)
    products = gate.shape[1] // width + 1
    return _call(kernel, dilations, given, found, memory, products, interpret)


def _backward(shape, kept, first, rest, gate, bias, out, out_bias, gradient) -> dict:
    """Gradients of x, first, rest, and by segment those of gate, bias, out, out_bias.

    What a layer's gate was is computed again from the signal that was kept.
    """
    length, dilations, scale, has_skips, interpret = shape
    _, num_layers, num_samples, width = kept.shape
    channels = width // 2
    reach, dtype = _reach(dilations), kept.dtype
    by_rows = functools.partial(_by_rows, num_samples)

    def kernel(
        layer,
        dilation,
        *,
        kept,
        gate,
        around_turned,
        here_turned,
        bias,
        out,
        out_turned,
        gradient,
        of_x,
        of_gate,
        of_bias,
        of_out,
        of_out_bias,
        signals,
        into_around,
        into_signal,
        rest=None,
        rest_turned=None,
        of_first=None,
        of_rest=None,
        into_rest=None,
    ):
        @pl.when(layer == num_layers - 1)
        def _():
            _clear_edges(signals, reach)
            _clear_edges(into_around, reach)

            @by_rows
            def _(rows):
                last = _beside(gradient, None, rows)
                nothing = jnp.zeros_like(last)
                into_signal[rows, :] = nothing if has_skips else last
                if rest is not None:
                    into_rest[rows, :] = nothing

        for ref in (of_gate, of_bias, of_out, of_out_bias):
            ref[...] = jnp.zeros_like(ref)

        @by_rows
        def _(rows):
            signals[_moved(rows, reach), :] = kept[rows, :].astype(jnp.float32)

        @by_rows
        def _(rows):
            heard = _heard(signals, rest, rows, reach, dilation, dtype)
            gated, by_filtered, by_opened = _gated(
                _product(heard, gate[...]) + bias[...]
            )
            beyond = into_signal[rows, :]
            of_residual = beyond * scale
            of_skip = _beside(gradient, gradient, rows) if has_skips else beyond
            of_change = _halves(of_residual, of_skip)
            change = of_change.astype(dtype)
            slope = _product(change, out_turned[...]) * _halves(by_filtered, by_opened)
            low = slope.astype(dtype)
            of_gate[...] += _correlation(heard, low)
            of_bias[...] += slope.sum(0, keepdims=True)
            of_out[...] += _correlation(gated.astype(dtype), change)
            of_out_bias[...] += of_change.sum(0, keepdims=True)
            into_around[_moved(rows, reach), :] = _product(low, around_turned[...])
            passed = _halves(of_residual, beyond)
            into_signal[rows, :] = passed + _product(low, here_turned[...])
            if rest is not None:
                into_rest[rows, :] += _product(low, rest_turned[...])

        @by_rows
        def _(rows):
            # A sample is before the one that is a dilation later, and after another.
            before = into_around[_moved(rows, reach + dilation), :]
            after = into_around[_moved(rows, reach - dilation), :]
            after = jnp.roll(after, channels, axis=1)
            told = into_signal[rows, :]
            told = _halves(told + before + after, told)
            into_signal[rows, :] = _until(length, told, rows, num_samples)

        @pl.when(layer == 0)
        def _():
            @by_rows
            def _(rows):
                of_x[rows, :] = into_signal[rows, :][:, :channels].astype(dtype)
                if rest is not None:
                    of_first[rows, :] = into_signal[rows, :][:, channels:].astype(dtype)
                    of_rest[rows, :] = into_rest[rows, :].astype(dtype)

    around, here, told = jnp.split(gate.swapaxes(1, 2), (width, 2 * width), axis=2)
    given = {
        "kept": ("both", kept),
        "gate": ("layer", gate),
        "around_turned": ("layer", around),
        "here_turned": ("layer", here),
        "bias": ("both", bias[:, :, None]),
        "out": ("layer", _padded(out)),
        "out_turned": ("layer", jnp.concatenate([out.swapaxes(1, 2)] * 2, axis=2)),
        "gradient": ("segment", gradient),
    }
    found = {
        "of_x": ("segment", (num_samples, channels), dtype),
        "of_gate": ("both", gate.shape[1:], jnp.float32),
        "of_bias": ("both", (1, width), jnp.float32),
        "of_out": ("both", (width, width), jnp.float32),
        "of_out_bias": ("both", (1, width), jnp.float32),
    }
    memory = {
        "signals": (num_samples + 2 * reach, width),
        "into_around": (num_samples + 2 * reach, width),
        "into_signal": (num_samples, width),
    }
    products = 2 * gate.shape[1] // width + 4
    if rest.shape[-1]:
        given |= {"rest": ("segment", rest), "rest_turned": ("layer", told)}
        found["of_first"] = ("segment", (num_samples, channels), dtype)
        found["of_rest"] = ("segment", (num_samples, width), dtype)
        memory["into_rest"] = (num_samples, width)
        products += 1
    return _call(
        kernel, dilations, given, found, memory, products, interpret, backwards=True
    )


def _padded(out):
    """[L, C, 2 C] -> [L, 2 C, 2 C], of rows that are multiplied with what is unused."""
    return jnp.pad(out, ((0, 0), (0, out.shape[1]), (0, 0)))


def _reach(dilations) -> int:
    """The rows of zeros on either side of a segment."""
    return -(-max(dilations) // 16) * 16


# Inside of the kernels.


def _by_rows(num_samples: int, step):
    """Calls step for one tile of rows after the other."""
    size, count = _tiles(num_samples)

    def body(index, _):
        step(pl.ds(pl.multiple_of(index * size, size), size))
        return 0

    lax.fori_loop(0, count, body, 0)


def _tiles(num_samples: int) -> tuple[int, int]:
    """(Rows of a tile, how many tiles hold all samples and the fewest others)."""
    count = -(-num_samples // MAX_ROWS)
    return -(-num_samples // (16 * count)) * 16, count


def _until(length: int, values, rows, num_samples: int):
    """Zeros for the rows after the last sample."""
    if length == num_samples:
        return values
    row = rows.start + lax.broadcasted_iota(jnp.int32, values.shape, 0)
    return jnp.where(row < length, values, 0.0)


def _moved(rows, offset):
    """The rows that are later by an offset."""
    return pl.ds(rows.start + offset, rows.size)


def _beside(left, right, rows):
    """Channels of two arrays side by side, float32; of no array zeros."""
    left = left[rows, :].astype(jnp.float32)
    right = jnp.zeros_like(left) if right is None else right[rows, :]
    return jnp.concatenate([left, right.astype(jnp.float32)], axis=-1)


def _clear_edges(ref, reach: int):
    """Nothing is heard before the first sample and after the last."""
    edge = jnp.zeros((reach, ref.shape[1]), ref.dtype)
    ref[pl.ds(0, reach), :] = edge
    ref[pl.ds(ref.shape[0] - reach, reach), :] = edge


def _halves(first, second):
    """The first half of the channels of one and the second half of the other."""
    channel = lax.broadcasted_iota(jnp.int32, first.shape, 1)
    return jnp.where(channel < first.shape[1] // 2, first, second)


def _heard(signals, rest, rows, reach: int, dilation, dtype):
    """What the gate of a layer is computed from: [rows, R]."""
    half = signals.shape[-1] // 2
    before = signals[_moved(rows, reach - dilation), :][:, :half]
    after = signals[_moved(rows, reach + dilation), :][:, :half]
    here = signals[_moved(rows, reach), :]
    heard = jnp.concatenate([before, after, here], axis=-1).astype(dtype)
    if rest is None:
        return heard
    return jnp.concatenate([heard, rest[rows, :]], axis=-1)


def _gated(gate):
    """tanh(first half) sigmoid(second half), and its slopes by either half.

    Each is right in that half of the channels which it is for; what the other half
    holds is finite and meets a zero.
    """
    # sigmoid(x) = (1 + tanh(x / 2)) / 2, so that one tanh serves both.
    curve = jnp.tanh(gate * _halves(jnp.ones_like(gate), jnp.full_like(gate, 0.5)))
    other = jnp.roll(curve, gate.shape[1] // 2, axis=1)
    bend, opened = 1 - curve * curve, 0.5 * other + 0.5
    return curve * opened, opened * bend, 0.25 * other * bend


def _product(x, kernel):
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _correlation(x, y):
    """Sum over rows: [rows, I], [rows, O] -> [I, O]."""
    return lax.dot_general(
        x, y, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )


# Around them.

# Which part of an array a kernel sees while a segment goes through a layer.
_PARTS = {
    "segment": lambda segment, layer: (segment,),
    "layer": lambda segment, layer: (layer,),
    "both": lambda segment, layer: (segment, layer),
}


def _call(
    kernel, dilations, given, found, memory, products, interpret, backwards=False
) -> dict:
    """Runs a kernel for every segment, and for each of them every layer.

    Args:
      kernel: (layer, dilation, **references by the names of all below).
      dilations: of the weights.
      given: name -> (one of _PARTS, array).
      found: name -> (one of _PARTS, shape of a part, type).
      memory: name -> shape of what stays from a layer to the next, float32.
      products: with [2 C, 2 C] matrices, of every row in a layer.
      interpret: whether and how to do without a TPU.
      backwards: the last layer comes first.

    Returns:
      name -> array, of those in found.
    """
    num_layers, width = len(dilations), memory[next(iter(memory))][-1]

    def block(part, shape):
        def index(segment, step, _):
            layer = num_layers - 1 - step if backwards else step
            return (*_PARTS[part](segment, layer), *[0] * len(shape))

        # The next segment waits until there is room; the next layer's part is fetched.
        copies = pl.Buffered(1) if part == "segment" else None
        leading = [None] * len(_PARTS[part](0, 0))
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
        moved = [*arrays, *results]
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, num_layers),
                in_specs=[
                    block(part, array.shape[len(_PARTS[part](0, 0)) :])
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
                flops=2 * rows * products * width**2,
                bytes_accessed=sum(
                    array.size * array.dtype.itemsize for array in moved
                ),
                transcendentals=rows * width,
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
