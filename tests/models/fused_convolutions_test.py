"""Convolutions in one kernel against the same in plain JAX, and those as a module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import sharding
from svc_jax.models import fused_convolutions, kernels
from svc_jax.models.convolutions import leaky_layers
from svc_jax.models.discriminators import WaveNetDiscriminator
from tests.models.alike import assert_alike, what_crosses

DILATIONS = (1, 2, 3, 17)


def drawn(batch: int, num_samples: int, channels: int, dtype=np.float32):
    """x, taps and bias."""
    rng = np.random.default_rng(0)
    shapes = {
        "x": (batch, num_samples, channels),
        "taps": (len(DILATIONS), 3, channels, channels),
        "bias": (len(DILATIONS), channels),
    }
    spread = {"x": 1, "taps": (2 * channels) ** -0.5, "bias": 0.1}
    return [
        jnp.asarray(rng.normal(0, spread[name], shape), dtype)
        for name, shape in shapes.items()
    ]


def maps_and_gradients(layers, given):
    """The maps, and gradients of what hears every one of them."""

    @jax.jit
    def run(given):
        def loss(given):
            maps = jnp.stack(layers(*given, DILATIONS))
            return jnp.sum(jnp.sin(2 * maps)), maps

        return jax.grad(loss, has_aux=True)(given)

    return run(given)


@pytest.mark.parametrize("num_samples", [45, 96])  # in tiles of 32: the last cut short
def test_the_kernel_is_the_layers_and_its_gradients_theirs(num_samples, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_ROWS", 32)
    given = drawn(2, num_samples, 4)
    kernel = functools.partial(fused_convolutions.fused, interpret=True)
    found = maps_and_gradients(kernel, given)
    expected = maps_and_gradients(leaky_layers, given)
    assert_alike(found, expected, atol=2e-5)


def test_a_discriminator_of_layers_at_once_is_the_one_of_modules():
    modules = WaveNetDiscriminator(channels=4, dilations=(1, 1, 2, 3, 1))
    at_once = modules.clone(leaky_layers=leaky_layers)
    audio = np.float32(np.random.default_rng(1).normal(size=(2, 50)))
    params = jax.jit(modules.init)(jax.random.key(0), audio)["params"]
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(at_once.init, jax.random.key(0), audio)["params"]
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, params, audio):
        def loss(params, audio):
            [maps] = module.apply({"params": params}, audio)
            return sum(jnp.sum(jnp.sin(x)) for x in maps), maps

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, audio)

    assert_alike(run(at_once, params, audio), run(modules, params, audio), atol=1e-5)


@pytest.mark.proof
@pytest.mark.parametrize("slice_of", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_chips_take_a_segment_of_16000_samples(slice_of):
    """Forward and backward, by the compiler of the chips; only weights' gradients cross."""
    pytest.importorskip("libtpu")
    mesh = sharding.mesh_of(sharding.devices_of_slice(slice_of), 1)
    x, *whole = jax.eval_shape(lambda: drawn(mesh.size, 16_000, 64, jnp.bfloat16))

    def loss(x, taps, bias):
        maps = fused_convolutions.fused(x, taps, bias, DILATIONS)
        return jnp.sum(jnp.square(maps[-1].astype(jnp.float32)))

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    assert what_crosses(mesh, gradients, [x], whole) == {"all-reduce"}
