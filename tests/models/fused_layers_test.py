"""Layers in one kernel against the same layers in plain JAX, and those as modules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import hlo, sharding
from svc_jax.models import fused_layers, kernels
from svc_jax.models.gated_layers import Weights, gated_layers
from svc_jax.models.wavenet import WaveNetGenerator
from tests.models.alike import assert_alike, what_crosses
from tests.models.wavenet_test import embed_and_sing, inputs, random_params

DILATIONS = (1, 2, 4, 17)
SCALE = 0.7


def drawn(told: bool, batch: int, num_samples: int, channels: int, dtype=np.float32):
    """x, condition and weights; layers that are told nothing have no skips."""
    rng = np.random.default_rng(0)
    count, outputs = len(DILATIONS), (1 + told) * channels
    conditions = 3 * channels * told

    def normal(*shape, spread=1.0):
        return jnp.asarray(rng.normal(0, spread, shape), dtype)

    weights = Weights(
        normal(count, 3, channels, 2 * channels, spread=(3 * channels) ** -0.5),
        normal(batch if told else 1, count, 2 * channels, spread=0.1),
        normal(count, conditions, 2 * channels, spread=(3 * channels) ** -0.5),
        normal(count, channels, outputs, spread=channels**-0.5),
        normal(count, outputs, spread=0.1),
    )
    x = normal(batch, num_samples, channels)
    return x, normal(batch, num_samples, conditions), weights


def value_and_gradients(layers, given):
    direction = np.random.default_rng(1).standard_normal(given[0].shape)

    @jax.jit
    def run(given):
        def loss(given):
            result = layers(*given, DILATIONS, SCALE)
            return jnp.sum(result * direction), result

        return jax.grad(loss, has_aux=True)(given)

    return run(given)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("num_samples", [45, 96])  # in tiles of 32: the last cut short
def test_the_kernel_is_the_layers_and_its_gradients_theirs(
    told, num_samples, monkeypatch
):
    monkeypatch.setattr(kernels, "MAX_ROWS", 32)
    given = drawn(told, 2, num_samples, 4)
    kernel = functools.partial(fused_layers.fused, interpret=True)
    found = value_and_gradients(kernel, given)
    expected = value_and_gradients(gated_layers, given)
    assert_alike(found, expected, atol=2e-5)


def test_nothing_is_heard_beyond_the_ends():
    """A segment sounds alike alone and among others, whatever those are."""
    x, condition, weights = drawn(True, 3, 48, 4)
    kernel = functools.partial(fused_layers.fused, interpret=True)
    together = kernel(x.at[0].set(1e3), condition, weights, DILATIONS, SCALE)
    bias = weights.gate_bias[1:2]
    alone = kernel(
        x[1:2], condition[1:2], weights.replace(gate_bias=bias), DILATIONS, SCALE
    )
    np.testing.assert_array_equal(together[1:2], alone)


def test_each_device_computes_its_own_segments():
    mesh = sharding.make_mesh(1)
    given = drawn(True, mesh.size, 32, 4)
    kernel = functools.partial(
        fused_layers.fused, dilations=DILATIONS, scale=SCALE, interpret=True
    )
    x, condition = jax.device_put(given[:2], sharding.batch_sharding(mesh))
    run = jax.jit(sharding.on_mesh(kernel, mesh))
    text = run.lower(x, condition, given[2]).compile().as_text()
    assert not hlo.collectives(text)
    result = run(x, condition, given[2])
    assert result.sharding.is_equivalent_to(x.sharding, x.ndim)
    np.testing.assert_allclose(result, kernel(*given), atol=1e-6)


SMALL = WaveNetGenerator(
    num_singers=3,
    embedding_size=5,
    hop_length=8,
    channels=4,
    gate_channels=8,
    skip_channels=4,
    dilations=(1, 2, 4) * 2,
    context_channels=4,
    context_gate_channels=8,
    loudness_dilations=(1, 2) * 2,
    asr_dilations=(1, 3),
    sine_dilations=(1, 2, 4),
    loudness_factors=(4, 2),
    asr_factors=(4, 2, 2),
)


@pytest.mark.parametrize("num_singers", [3, 1])
def test_a_generator_of_layers_at_once_is_the_one_of_modules(num_singers):
    modules = dataclasses.replace(SMALL, num_singers=num_singers)
    at_once = modules.clone(gated_layers=gated_layers)
    features, noise = inputs(modules, 12, 6)
    given = (np.array([num_singers - 1, 0]), features, noise)
    init = functools.partial(modules.init, method=embed_and_sing)
    params = random_params(init, *given)

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, params):
        def loss(params):
            sung = module.apply({"params": params}, *given, method=embed_and_sing)
            return jnp.sum(jnp.sin(sung)), sung

        return jax.grad(loss, has_aux=True)(params)

    assert_alike(run(at_once, params), run(modules, params), atol=1e-4)


@pytest.mark.proof
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("slice_of", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_chips_take_a_segment_of_16000_samples(slice_of, told):
    """Forward and backward, by the compiler of the chips; only weights' gradients cross."""
    pytest.importorskip("libtpu")
    mesh = sharding.mesh_of(sharding.devices_of_slice(slice_of), 1)
    *split, weights = jax.eval_shape(
        lambda: drawn(told, mesh.size, 16_000, 64, jnp.bfloat16)
    )

    def loss(x, condition, weights):
        result = fused_layers.fused(x, condition, weights, DILATIONS, SCALE)
        return jnp.sum(jnp.square(result.astype(jnp.float32)))

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    assert what_crosses(mesh, gradients, split, [weights]) == {"all-reduce"}
