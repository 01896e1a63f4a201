"""Stacks of gated layers as kernels of a TPU, one forward and one backward.

What crosses between the core and memory is the input, the condition, the output, and of
each layer what the way back begins with (`kernels` says how). What they compute, in plain
JAX, is `gated_layers.gated_layers`.

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

from svc_jax.models import kernels
from svc_jax.models.gated_layers import Weights


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
    rows, count = kernels.tiles(num_samples)
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
    reach, dtype = kernels.reach(dilations), x.dtype
    by_rows = functools.partial(kernels.by_rows, num_samples)

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
            kernels.clear_edges(now, reach)
            kernels.clear_edges(then, reach)

            @by_rows
            def _(rows):
                both = _beside(x, first, rows)
                now[kernels.moved(rows, reach), :] = both
                if has_skips:
                    skips[rows, :] = jnp.zeros_like(both)

        @by_rows
        def _(rows):
            heard = _heard(now, rest, rows, reach, dilation, dtype)
            gated, _, _ = _gated(kernels.product(heard, gate[...]) + bias[...])
            change = kernels.product(gated.astype(dtype), out[...]) + out_bias[...]
            here = now[kernels.moved(rows, reach), :]
            there = _halves((here + change) * scale, here)
            then[kernels.moved(rows, reach), :] = kernels.until(length, there, rows)
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
                    last = then[kernels.moved(rows, reach), :][:, :channels]
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
    work = gate.shape[1] // width + 1, width
    return kernels.call(kernel, dilations, given, found, memory, work, interpret)


def _backward(shape, kept, first, rest, gate, bias, out, out_bias, gradient) -> dict:
    """Gradients of x, first, rest, and by segment those of gate, bias, out, out_bias.

    What a layer's gate was is computed again from the signal that was kept.
    """
    length, dilations, scale, has_skips, interpret = shape
    _, num_layers, num_samples, width = kept.shape
    channels = width // 2
    reach, dtype = kernels.reach(dilations), kept.dtype
    by_rows = functools.partial(kernels.by_rows, num_samples)

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
            kernels.clear_edges(signals, reach)
            kernels.clear_edges(into_around, reach)

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
            signals[kernels.moved(rows, reach), :] = kept[rows, :].astype(jnp.float32)

        @by_rows
        def _(rows):
            heard = _heard(signals, rest, rows, reach, dilation, dtype)
            gated, by_filtered, by_opened = _gated(
                kernels.product(heard, gate[...]) + bias[...]
            )
            beyond = into_signal[rows, :]
            of_residual = beyond * scale
            of_skip = _beside(gradient, gradient, rows) if has_skips else beyond
            of_change = _halves(of_residual, of_skip)
            change = of_change.astype(dtype)
            slope = kernels.product(change, out_turned[...]) * _halves(
                by_filtered, by_opened
            )
            low = slope.astype(dtype)
            of_gate[...] += kernels.correlation(heard, low)
            of_bias[...] += slope.sum(0, keepdims=True)
            of_out[...] += kernels.correlation(gated.astype(dtype), change)
            of_out_bias[...] += of_change.sum(0, keepdims=True)
            into_around[kernels.moved(rows, reach), :] = kernels.product(
                low, around_turned[...]
            )
            passed = _halves(of_residual, beyond)
            into_signal[rows, :] = passed + kernels.product(low, here_turned[...])
            if rest is not None:
                into_rest[rows, :] += kernels.product(low, rest_turned[...])

        @by_rows
        def _(rows):
            # A sample is before the one that is a dilation later, and after another.
            after, before, _ = kernels.around(into_around, rows, reach, dilation)
            after = jnp.roll(after, channels, axis=1)
            told = into_signal[rows, :]
            told = _halves(told + before + after, told)
            into_signal[rows, :] = kernels.until(length, told, rows)

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
    work = products, width
    return kernels.call(
        kernel, dilations, given, found, memory, work, interpret, backwards=True
    )


def _padded(out):
    """[L, C, 2 C] -> [L, 2 C, 2 C], of rows that are multiplied with what is unused."""
    return jnp.pad(out, ((0, 0), (0, out.shape[1]), (0, 0)))


# Inside of the kernels.


def _beside(left, right, rows):
    """Channels of two arrays side by side, float32; of no array zeros."""
    left = left[rows, :].astype(jnp.float32)
    right = jnp.zeros_like(left) if right is None else right[rows, :]
    return jnp.concatenate([left, right.astype(jnp.float32)], axis=-1)


def _halves(first, second):
    """The first half of the channels of one and the second half of the other."""
    channel = lax.broadcasted_iota(jnp.int32, first.shape, 1)
    return jnp.where(channel < first.shape[1] // 2, first, second)


def _heard(signals, rest, rows, reach: int, dilation, dtype):
    """What the gate of a layer is computed from: [rows, R]."""
    half = signals.shape[-1] // 2
    before, after, here = kernels.around(signals, rows, reach, dilation)
    heard = jnp.concatenate([before[:, :half], after[:, :half], here], axis=-1)
    heard = heard.astype(dtype)
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
