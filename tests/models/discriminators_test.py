"""The discriminator: its size, its reach, and its formula in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax.models.discriminators import MultiDiscriminator, WaveNetDiscriminator

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
    (maps,), variables = jax.eval_shape(
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
    (maps,) = jax.jit(module.apply)({"params": params}, x)
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
        return module.apply({"params": params}, x)[0][-1][0, 80, 0]

    seen = np.flatnonzero(slope(audio(161))[0])
    assert (seen.min(), seen.max()) == (80 - 38, 80 + 38)
    assert not np.any(slope(audio(161))[1])


MULTI = MultiDiscriminator(
    periods=(2, 5),
    period_channels=(3, 4),
    fft_sizes=(256, 64),
    spectrum_channels=(3, 2),
)


@pytest.fixture(scope="module")
def multi_params():
    return jax.jit(MULTI.init)(jax.random.key(0), audio(1000))["params"]


def test_there_is_a_judge_for_every_period_and_every_spectrum(multi_params):
    judges = jax.eval_shape(MULTI.apply, {"params": multi_params}, audio(1000))
    assert len(judges) == 4
    for judge in judges:
        assert len(judge) == 3  # two layers and the logits
        assert {x.shape[0] for x in judge} == {2}
        assert judge[-1].shape[-1] == 1
    # 1000 samples in rows of 2 and of 5, a third of them and a ninth.
    assert [x.shape for x in judges[0]] == [(2, 334, 3), (2, 112, 4), (2, 112, 1)]
    assert [x.shape for x in judges[1]] == [(2, 335, 3), (2, 115, 4), (2, 115, 1)]
    # 129 and 33 frequencies, a quarter of them and an eighth; hops of 64 and 16.
    assert [x.shape[1:3] for x in judges[2]] == [(16, 33), (16, 17), (16, 17)]
    assert [x.shape[1:3] for x in judges[3]] == [(63, 9), (63, 5), (63, 5)]


def test_a_period_judge_hears_samples_of_one_offset(multi_params):
    """A logit of period 5 depends on every fifth sample alone."""

    @jax.jit
    @jax.grad
    def slope(x):
        # Rows of offset 2 stand third among the five.
        logits = MULTI.apply({"params": multi_params}, x)[1][-1]
        return logits.reshape(2, 5, -1)[0, 2].sum()

    seen = np.flatnonzero(slope(audio(1000))[0])
    assert seen.size > 100
    assert set(seen % 5) == {2}


def test_no_score_hears_farther_than_is_said(multi_params):
    num_samples = 1000
    reach = MULTI.receptive_field()

    def span(judge):
        @jax.jit
        @jax.grad
        def slope(x):
            logits = MULTI.apply({"params": multi_params}, x)[judge][-1]
            middle = (
                logits.reshape(2, MULTI.periods[judge], -1) if judge < 2 else logits
            )
            axis = 2 if judge < 2 else 1
            return jnp.take(middle, middle.shape[axis] // 2, axis)[0].sum()

        seen = np.flatnonzero(slope(audio(num_samples))[0])
        return seen.max() - seen.min() + 1

    spans = [span(judge) for judge in range(4)]
    assert reach * 0.8 < max(spans) <= reach < num_samples


def test_the_whole_batch_is_judged_each_alone(multi_params):
    both = jax.jit(MULTI.apply)({"params": multi_params}, audio(500))
    alone = jax.jit(MULTI.apply)({"params": multi_params}, audio(500)[1:])
    for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x[1:], y, atol=1e-5)
