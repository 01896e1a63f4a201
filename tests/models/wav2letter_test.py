"""Wav2Letter against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax.models.wav2letter import LETTERS, Wav2Letter, fold_norms

SMALL = Wav2Letter(channels=4, wide_channels=6, num_labels=5)
small = jax.jit(SMALL.apply)


def mfcc(*shape, seed=0):
    """Normalised features [..., T, 39]."""
    return np.float32(np.random.default_rng(seed).standard_normal((*shape, 39)))


@functools.cache
def random_params():
    """Weights that keep the scale, and biases."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), mfcc(1, 9))["params"]
    return jax.tree.map(
        lambda leaf: np.float32(
            rng.standard_normal(leaf.shape)
            / np.sqrt(np.prod(leaf.shape[:-1]) / 2 if leaf.ndim == 3 else 4)
        ),
        shapes,
    )


def test_the_default_is_the_published_network():
    num_params = jax.eval_shape(Wav2Letter().init, jax.random.key(0), mfcc(1, 9))
    assert sum(leaf.size for leaf in jax.tree.leaves(num_params)) == 23_594_529
    assert "".join(LETTERS) == "abcdefghijklmnopqrstuvwxyz' @"


@pytest.mark.parametrize(("num_frames", "num_out"), [(1, 1), (2, 1), (101, 51)])
def test_outputs_come_at_half_the_rate_rounded_up(num_frames, num_out):
    x = mfcc(3, num_frames)
    result, _ = jax.eval_shape(Wav2Letter().init_with_output, jax.random.key(0), x)
    sizes = {"hidden": 250, "wide": 2000, "logits": 29}
    expected = {name: (3, num_out, size) for name, size in sizes.items()}
    assert {name: x.shape for name, x in result.items()} == expected


def float64_wav2letter(params, x):
    """method.md, section 7: [T, 39] -> dict of [ceil(T / 2), ...]."""
    odd = len(x) % 2
    layers = [("conv1", 2, (23, 23 + odd))]
    layers += [(f"conv{number}", 1, (3, 3)) for number in range(2, 9)]
    layers += [("wide1", 1, (15, 16)), ("wide2", 1, (0, 0)), ("output", 1, (0, 0))]
    outputs = {}
    for name, stride, padding in layers:
        kernel = np.float64(params[name]["kernel"])
        padded = np.pad(np.float64(x), (padding, (0, 0)))
        starts = range(0, len(padded) - len(kernel) + 1, stride)
        windows = [padded[start : start + len(kernel)] for start in starts]
        x = np.tensordot(windows, kernel, 2) + params[name]["bias"]
        if name != "output":
            x = np.maximum(x, 0.2 * x)
        outputs[name] = x
    return {
        "hidden": outputs["conv8"],
        "wide": outputs["wide2"],
        "logits": outputs["output"],
    }


def assert_close(result, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("num_frames", [1, 2, 30, 31, 120, 121])
def test_it_computes_what_the_method_says_at_odd_and_even_lengths(num_frames):
    x = mfcc(1, num_frames)
    expected = float64_wav2letter(random_params(), x[0])
    assert num_frames < 30 or np.std(expected["logits"]) > 0.1
    result = small({"params": random_params()}, x)
    assert_close({name: value[0] for name, value in result.items()}, expected)


@pytest.mark.parametrize("total", [90, 91])
def test_a_padded_recording_is_read_as_if_alone(total):
    counts = np.array([1, 2, 40, 41, 89, total])
    x = mfcc(counts.size, total)
    beyond = np.arange(total) >= counts[:, None]
    results = [
        small({"params": random_params()}, np.where(beyond[..., None], fill, x), counts)
        for fill in (np.float32(1e3), np.float32(np.nan), x)
    ]
    for row, count in enumerate(counts):
        real = -(-count // 2)
        expected = float64_wav2letter(random_params(), x[row, :count])
        for result in results:
            assert_close({k: v[row, :real] for k, v in result.items()}, expected)


def test_an_output_depends_on_its_context_only():
    network = Wav2Letter(4, 6, 5, kernels=(8, 5, 3), wide_kernel=6)
    x = mfcc(1, 80)
    params = jax.jit(network.init)(jax.random.key(0), x)

    @jax.jit
    @jax.grad
    def slope(x):
        return jnp.sum(network.apply(params, x)["logits"][0, 20])

    seen = np.flatnonzero(np.abs(slope(x)).sum((0, 2)))
    # Output 20 stands at frame 40; kernel 8 reaches 3 frames back and 4 ahead, the
    # others 2 + 1 + 2 outputs back and 2 + 1 + 3 ahead, of two frames each.
    assert (seen.min(), seen.max()) == (40 - 2 * 5 - 3, 40 + 2 * 6 + 4)
    reach = 2 * network.context_frames()
    assert 40 - seen.min() <= reach and seen.max() - 40 <= reach


def test_dropout_needs_a_key_and_keeps_the_mean():
    network = Wav2Letter(4, 500, 5, kernels=(8,), wide_kernel=2, dropout=0.25)
    x = mfcc(1, 40)
    params = jax.jit(network.init)(jax.random.key(0), x)

    @jax.jit
    def hidden_and_wide(key):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        result = network.apply(params, x, rngs=rngs)
        return result["hidden"], result["wide"]

    hidden, wide = hidden_and_wide(None)
    assert np.all(wide != 0)
    np.testing.assert_array_equal(wide, hidden_and_wide(None)[1])
    dropped_hidden, dropped_wide = (np.asarray(x) for x in hidden_and_wide(1))
    assert np.mean(dropped_wide != 0) == pytest.approx(0.75, abs=0.02)
    expected = np.where(dropped_hidden != 0, hidden / 0.75, 0)
    np.testing.assert_allclose(dropped_hidden, expected, rtol=1e-5)
    assert np.any(hidden_and_wide(2)[0] != dropped_hidden)


def test_a_normed_network_folds_into_a_plain_one():
    plain = Wav2Letter(4, 6, 5, kernels=(8, 3), wide_kernel=2)
    normed = plain.clone(normed=True)
    x = 3.0 + mfcc(2, 60)
    variables = jax.jit(normed.init)(jax.random.key(0), x)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    variables = jax.tree.map(  # norms and biases that do something
        lambda leaf: leaf + 0.3 * jax.random.uniform(next(keys), leaf.shape), variables
    )
    folded = fold_norms(variables["params"], variables["batch_stats"])
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(plain.init, jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, folded) == shapes["params"]
    num_frames = np.asarray([60, 41])
    wanted = normed.apply(variables, x, num_frames)
    found = plain.apply({"params": folded}, x, num_frames)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


def test_padding_is_no_part_of_the_norms():
    network = Wav2Letter(4, 6, 5, kernels=(8,), wide_kernel=2, normed=True)
    x = mfcc(2, 60)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    padded = np.pad(x, ((0, 0), (0, 40), (0, 0)), constant_values=9.0)

    def learn(x, num_frames):
        return network.apply(
            variables, x, num_frames, train=True, mutable="batch_stats"
        )

    found, stats = learn(padded, np.asarray([60, 60]))
    wanted, wanted_stats = learn(x, None)
    assert_close({k: v[:, :30] for k, v in found.items()}, wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        stats,
        wanted_stats,
    )
