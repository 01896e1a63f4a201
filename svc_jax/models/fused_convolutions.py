"""Stacks of dilated convolutions as kernels of a TPU, one forward and one backward.

What crosses between the core and memory is the input and what every layer makes of it
(`kernels` says how). What they compute, in plain JAX, is `convolutions.leaky_layers`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl

from svc_jax.models import kernels
from svc_jax.models.convolutions import LEAK


def fused(x, taps, bias, dilations: Sequence[int], interpret=False):
    """`convolutions.leaky_layers` by Pallas.

    Its products are of the type of x, its sums float32. Of arrays that are split over
    the axis `data` of the mesh at hand, each device computes its own part.
    """
    num_layers, num_samples = len(dilations), x.shape[1]
    rows, count = kernels.tiles(num_samples)
    x = jnp.pad(x, ((0, 0), (0, rows * count - num_samples), (0, 0)))
    before, here, after = (taps[:, k] for k in range(3))
    taps = jnp.concatenate([before, after, here], axis=1).astype(x.dtype)
    shape = num_samples, tuple(dilations), interpret
    maps, last = _run(shape, x, taps, bias.astype(jnp.float32))
    layers = (maps[:, layer] for layer in range(num_layers - 1))
    return [layer[:, :num_samples] for layer in (*layers, last)]


# What the kernels are given: x [B, N, C]; taps [L, 3 C, C], for the samples before and
# after and the one here; bias [L, C]. Maps are [B, L, N, C]; the last one is returned by
# itself as well, since often only that has a gradient.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(shape, x, taps, bias):
    maps = _forward(shape, x, taps, bias)
    return maps, maps[:, -1]


def _run_forward(shape, x, taps, bias):
    x, taps, bias = (given.value for given in (x, taps, bias))
    maps = _forward(shape, x, taps, bias)
    return (maps, maps[:, -1]), (x, taps, maps)


def _run_backward(shape, saved, gradients):
    x, taps, maps = saved
    of_maps, of_last = (
        None if isinstance(gradient, SymbolicZero) else gradient
        for gradient in gradients
    )
    if of_last is None:
        of_last = jnp.zeros_like(x)
    found = _backward(shape, x, taps, maps, of_maps, of_last)
    of_taps = found["of_taps"].sum(0).astype(taps.dtype)
    return found["of_x"], of_taps, found["of_bias"].sum(0)[:, 0]


_run.defvjp(_run_forward, _run_backward, symbolic_zeros=True)


def _forward(shape, x, taps, bias):
    length, dilations, interpret = shape
    _, num_samples, channels = x.shape
    reach, dtype = kernels.reach(dilations), x.dtype
    by_rows = functools.partial(kernels.by_rows, num_samples)

    def kernel(layer, dilation, *, x, taps, bias, maps, signals):
        now, then = signals.at[layer % 2], signals.at[1 - layer % 2]

        @pl.when(layer == 0)
        def _():
            kernels.clear_edges(now, reach)
            kernels.clear_edges(then, reach)

            @by_rows
            def _(rows):
                now[kernels.moved(rows, reach), :] = x[rows, :].astype(jnp.float32)

        @by_rows
        def _(rows):
            heard = _heard(now, rows, reach, dilation, dtype)
            out = kernels.product(heard, taps[...]) + bias[...]
            out = kernels.until(length, jnp.where(out >= 0, out, LEAK * out), rows)
            then[kernels.moved(rows, reach), :] = out
            maps[rows, :] = out.astype(dtype)

    given = {
        "x": ("segment", x),
        "taps": ("layer", taps),
        "bias": ("layer", bias[:, None]),
    }
    found = {"maps": ("both", (num_samples, channels), dtype)}
    memory = {"signals": (2, num_samples + 2 * reach, channels)}
    done = kernels.call(kernel, dilations, given, found, memory, (2, 0), interpret)
    return done["maps"]


def _backward(shape, x, taps, maps, of_maps, of_last) -> dict:
    """Gradients of x, and by segment those of taps and bias."""
    length, dilations, interpret = shape
    _, num_layers, num_samples, channels = maps.shape
    reach, dtype = kernels.reach(dilations), maps.dtype
    by_rows = functools.partial(kernels.by_rows, num_samples)

    def kernel(
        layer,
        dilation,
        *,
        x,
        heard_map,
        own_map,
        of_last,
        taps,
        around_turned,
        here_turned,
        of_x,
        of_taps,
        of_bias,
        signals,
        into_around,
        into_signal,
        of_map=None,
    ):
        @pl.when(layer == num_layers - 1)
        def _():
            kernels.clear_edges(signals, reach)
            kernels.clear_edges(into_around, reach)

            @by_rows
            def _(rows):
                into_signal[rows, :] = of_last[rows, :].astype(jnp.float32)

        for ref in (of_taps, of_bias):
            ref[...] = jnp.zeros_like(ref)

        @by_rows
        def _(rows):
            heard = jnp.where(layer == 0, x[rows, :], heard_map[rows, :])
            signals[kernels.moved(rows, reach), :] = heard.astype(jnp.float32)

        @by_rows
        def _(rows):
            beyond = into_signal[rows, :]
            if of_map is not None:
                beyond += of_map[rows, :].astype(jnp.float32)
            slope = jnp.where(own_map[rows, :].astype(jnp.float32) >= 0, 1.0, LEAK)
            slope = kernels.until(length, slope * beyond, rows)
            low = slope.astype(dtype)
            heard = _heard(signals, rows, reach, dilation, dtype)
            of_taps[...] += kernels.correlation(heard, low)
            of_bias[...] += slope.sum(0, keepdims=True)
            into_around[kernels.moved(rows, reach), :] = kernels.product(
                low, around_turned[...]
            )
            into_signal[rows, :] = kernels.product(low, here_turned[...])

        @by_rows
        def _(rows):
            # A sample is before the one that is a dilation later, and after another.
            after, before, _ = kernels.around(into_around, rows, reach, dilation)
            into_signal[rows, :] += before[:, :channels] + after[:, channels:]

        @pl.when(layer == 0)
        def _():
            @by_rows
            def _(rows):
                of_x[rows, :] = into_signal[rows, :].astype(dtype)

    around, here = jnp.split(taps.swapaxes(1, 2), [2 * channels], axis=2)
    given = {
        "x": ("segment", x),
        "heard_map": ("before", maps),
        "own_map": ("both", maps),
        "of_last": ("segment", of_last),
        "taps": ("layer", taps),
        "around_turned": ("layer", around),
        "here_turned": ("layer", here),
    }
    found = {
        "of_x": ("segment", (num_samples, channels), dtype),
        "of_taps": ("both", (3 * channels, channels), jnp.float32),
        "of_bias": ("both", (1, channels), jnp.float32),
    }
    if of_maps is not None:
        given["of_map"] = ("both", of_maps)
    padded = num_samples + 2 * reach
    memory = {
        "signals": (padded, channels),
        "into_around": (padded, 2 * channels),
        "into_signal": (num_samples, channels),
    }
    return kernels.call(
        kernel, dilations, given, found, memory, (4, 0), interpret, backwards=True
    )


def _heard(signals, rows, reach: int, dilation, dtype):
    """What a layer hears: [rows, 3 C]."""
    around = kernels.around(signals, rows, reach, dilation)
    return jnp.concatenate(around, axis=-1).astype(dtype)
