"""The discriminator: its size, its reach, and its formula in float64."""

import inspect

import jax
import numpy as np
import pytest

from svc_jax.models.discriminators import WaveNetDiscriminator

DILATIONS = (1, 1, 2, 3, 4, 5, 6, 7, 8, 1)


def audio(num_samples, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.standard_normal((2, num_samples)))


def sizes(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_it_has_the_published_number_of_parameters_and_a_score_per_sample():
    maps, variables = jax.eval_shape(
        WaveNetDiscriminator().init_with_output, jax.random.key(0), audio(500)
    )
    assert [x.shape for x in maps] == [(2, 500, 64)] * 9 + [(2, 500, 1)]
    named = sizes(variables["params"])
    scales = sum(size for name, size in named.items() if name.endswith("scale"))
    assert sum(named.values()) - scales == 99_265
    assert scales == 9 * 64 + 1


def test_it_hears_audio_alone():
    # Never who sings, nor what: a label would let it ask for more than a voice.
    assert list(inspect.signature(WaveNetDiscriminator.__call__).parameters) == [
        "self",
        "audio",
    ]


@pytest.fixture(scope="module")
def small():
    """A narrow one with random biases: the module and its parameters."""
    module = WaveNetDiscriminator(channels=6)
    params = jax.jit(module.init)(jax.random.key(0), audio(9))["params"]
    rng = np.random.default_rng(1)
    return module, jax.tree.map(
        lambda x: np.asarray(x) + np.float32(0.1 * rng.standard_normal(x.shape)), params
    )


def test_every_map_is_that_in_float64(small):
    module, params = small
    x = audio(200)
    maps = jax.jit(module.apply)({"params": params}, x)
    expected = np.float64(x)[..., None]
    names = [f"layer{index}" for index in range(9)] + ["output"]
    for name, dilation, result in zip(names, DILATIONS, maps, strict=True):
        layer = jax.tree.map(np.float64, params[name])
        kernel = layer["direction"] * layer["scale"]
        kernel /= np.sqrt(np.sum(layer["direction"] ** 2, axis=(0, 1)))
        padded = np.pad(expected, ((0, 0), (dilation, dilation), (0, 0)))
        taps = [padded[:, k * dilation : k * dilation + 200] for k in range(3)]
        expected = np.einsum("kbnc,kcd->bnd", taps, kernel) + layer["bias"]
        if name != "output":
            expected = np.where(expected > 0, expected, 0.2 * expected)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_score_hears_77_samples(small):
    module, params = small

    @jax.jit
    @jax.grad
    def slope(x):
        return module.apply({"params": params}, x)[-1][0, 80, 0]

    seen = np.flatnonzero(slope(audio(161))[0])
    assert (seen.min(), seen.max()) == (80 - 38, 80 + 38)
    assert not np.any(slope(audio(161))[1])
