"""Convolutions in one kernel against the same in plain JAX, and those as a module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import hlo, sharding
from svc_jax.models import fused_convolutions, kernels
from svc_jax.models.convolutions import leaky_layers
from svc_jax.models.discriminators import WaveNetDiscriminator

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
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


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

    for ours, theirs in zip(
        jax.tree.leaves(run(at_once, params, audio)),
        jax.tree.leaves(run(modules, params, audio)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.proof
@pytest.mark.parametrize("slice_of", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_chips_take_a_segment_of_16000_samples(slice_of, monkeypatch):
    """Forward and backward, by the compiler of the chips; only weights' gradients cross."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_of)
    mesh = sharding.mesh_of(topology.devices, 1)
    given = jax.eval_shape(lambda: drawn(mesh.size, 16_000, 64, jnp.bfloat16))
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    x, taps, bias = (
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
        for array, place in zip(given, (split, whole, whole), strict=True)
    )

    def loss(x, taps, bias):
        maps = fused_convolutions.fused(x, taps, bias, DILATIONS)
        return jnp.sum(jnp.square(maps[-1].astype(jnp.float32)))

    gradients = sharding.on_mesh(jax.grad(loss, argnums=(0, 1, 2)), mesh)
    text = jax.jit(gradients).lower(x, taps, bias).compile().as_text()
    assert set(hlo.collectives(text)) == {"all-reduce"}
