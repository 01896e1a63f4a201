"""Building blocks against loops and analytic truth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from svc_jax.models.layers import (
    REMAT,
    ContextLayer,
    ContextStack,
    Conv,
    DilatedLayers,
    GatedLayer,
    Upsample,
    cycle_length,
    receptive_field,
)


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def built(module, *inputs, seed=1):
    """Params of a module, each leaf random so that none is at a special value."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: np.float32(rng.normal(0.2, 0.5, x.shape)), shapes)


def apply(module, params, *inputs):
    return np.asarray(jax.jit(module.apply)({"params": params}, *inputs))


@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_is_a_convolution_by_scale_times_the_unit_direction(use_bias):
    module = Conv(5, kernel_size=3, dilation=2, use_bias=use_bias)
    x = normal(2, 20, 4)
    params = built(module, x)
    assert set(params) == {"direction", "scale"} | ({"bias"} if use_bias else set())
    direction = np.float64(params["direction"])
    length = np.sqrt((direction**2).sum((0, 1)))
    kernel = direction / length * params["scale"]
    padded = np.pad(np.float64(x), ((0, 0), (2, 2), (0, 0)))
    expected = sum(padded[:, 2 * k : 2 * k + 20] @ kernel[k] for k in range(3))
    expected = expected + params.get("bias", 0)
    np.testing.assert_allclose(apply(module, params, x), expected, atol=1e-5)
    longer = {**params, "direction": 3 * params["direction"]}
    np.testing.assert_allclose(apply(module, longer, x), expected, atol=1e-5)


def test_the_gradient_of_a_direction_stands_upright_on_it():
    module, x = Conv(5, kernel_size=3), normal(1, 20, 4)
    params = built(module, x)

    @jax.jit
    @jax.grad
    def slope(params):
        return jnp.sum(jnp.square(module.apply({"params": params}, x)))

    gradient = slope(params)["direction"]
    assert np.abs(gradient).max() > 1
    along = np.sum(gradient * params["direction"], axis=(0, 1))
    np.testing.assert_allclose(along, 0, atol=1e-3)


@pytest.mark.parametrize(("kernel_size", "in_channels"), [(1, 256), (3, 64)])
def test_a_new_convs_kernel_is_its_direction_of_kaimings_deviation(
    kernel_size, in_channels
):
    module = Conv(128, kernel_size)
    x = np.zeros((1, 8, in_channels), np.float32)
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    direction = np.float64(params["direction"])
    length = np.sqrt((direction**2).sum((0, 1)))
    np.testing.assert_allclose(params["scale"], length, rtol=1e-6)
    np.testing.assert_array_equal(params["bias"], np.zeros(128))
    expected = np.sqrt(2 / (kernel_size * in_channels))
    error = 4 / np.sqrt(2 * direction.size)  # four deviations of a deviation
    assert direction.std() == pytest.approx(expected, rel=error)
    assert abs(direction.mean()) < 4 * expected / np.sqrt(direction.size)
    impulse = np.zeros((1, 8, in_channels), np.float32)
    impulse[0, 4, 7] = 1
    heard = apply(module, params, impulse)[0]
    half = kernel_size // 2
    taps = heard[4 - half : 5 + half][::-1]
    np.testing.assert_allclose(taps, direction[:, 7], rtol=1e-5, atol=1e-7)


def test_a_new_direction_is_normally_distributed():
    x = np.zeros((1, 8, 64), np.float32)
    params = jax.jit(Conv(128, 3).init)(jax.random.key(0), x)["params"]
    standard = np.float64(params["direction"]).ravel() / np.sqrt(2 / (3 * 64))
    assert scipy.stats.kstest(standard, "norm").pvalue > 1e-4


@pytest.mark.parametrize("as_product", [False, True])
@pytest.mark.parametrize("factors", [(4, 4, 4), (4, 5), (3,), (2, 1)])
def test_upsampling_repeats_and_filters_each_channel(factors, as_product):
    module, x = Upsample(factors, as_product), normal(2, 7, 3)
    params = built(module, x)
    expected = np.float64(x)
    for index, factor in enumerate(factors):
        taps = params[f"filter{index}"]
        assert taps.shape == (2 * factor + 1,)
        expected = np.repeat(expected, factor, axis=1)
        # "same" correlation, zeros beyond both ends
        expected = np.apply_along_axis(
            lambda row, taps: np.convolve(row, taps[::-1])[
                len(taps) // 2 : len(taps) // 2 + row.size
            ],
            1,
            expected,
            taps,
        )
    assert expected.shape[1] == 7 * np.prod(factors)
    np.testing.assert_allclose(apply(module, params, x), expected, atol=1e-4)


def test_new_upsampling_takes_means():
    module, x = Upsample((4, 4, 4)), np.full((1, 9, 2), 3, np.float32)
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    for index in range(3):
        np.testing.assert_allclose(params[f"filter{index}"], np.full(9, 1 / 9), 1e-6)
    inside = apply(module, params, x)[0, 4 * 21 : -4 * 21]  # far from the zeros outside
    np.testing.assert_allclose(inside, 3, rtol=1e-5)


def test_a_gate_multiplies_tanh_of_one_half_by_a_sigmoid_of_the_other():
    module, x = GatedLayer(6, 3, 2), normal(2, 20, 4)
    condition = normal(2, 20, 6, seed=3)
    params = built(module, x, condition)
    dilated = apply(Conv(6, 3, 2), params["dilated"], x).astype(np.float64)
    heard = dilated + condition
    expected = np.tanh(heard[..., :3]) / (1 + np.exp(-heard[..., 3:]))
    result = apply(module, params, x, condition)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    unconditioned = np.tanh(dilated[..., :3]) / (1 + np.exp(-dilated[..., 3:]))
    np.testing.assert_allclose(apply(module, params, x), unconditioned, atol=1e-6)


@pytest.mark.parametrize("dilations", [(), (1,), (1, 2, 4), (3, 1, 1, 2)])
def test_a_context_stack_sees_its_receptive_field_to_both_sides(dilations):
    module, x = ContextStack(4, 8, 3, dilations), normal(1, 61, 2)
    params = built(module, x)

    @jax.jit
    @jax.grad
    def slope(x):
        return jnp.sum(module.apply({"params": params}, x)[0, 30])

    seen = np.flatnonzero(np.abs(slope(x)).sum((0, 2)))
    reach = sum(dilations)
    assert (seen.min(), seen.max()) == (30 - reach, 30 + reach)
    assert receptive_field(3, dilations) == 1 + 2 * reach


@pytest.mark.parametrize("policy", REMAT)
@pytest.mark.parametrize("dilations", [(1, 2, 1, 2, 1, 2), (1, 2, 4), (2, 2, 2)])
def test_a_loop_over_cycles_is_its_layers_one_after_the_other(dilations, policy):
    def layer(dilation):
        return ContextLayer(4, 8, 3, dilation)

    module, x = DilatedLayers(layer, dilations, REMAT[policy]), normal(2, 31, 4)
    params = built(module, x)
    length = cycle_length(dilations)
    assert list(params) == [f"layer{index}" for index in range(length)]

    def in_a_row(params, x):
        for index, dilation in enumerate(dilations):
            own = jax.tree.map(
                lambda stacked, index=index: stacked[index // length],
                params[f"layer{index % length}"],
            )
            x = layer(dilation).apply({"params": own}, x)
        return x

    def looped(params, x):
        return module.apply({"params": params}, x)

    def sum_of_squares(run):
        return jax.jit(
            jax.value_and_grad(lambda *args: jnp.sum(run(*args) ** 2), argnums=(0, 1))
        )

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3),
        sum_of_squares(looped)(params, x),
        sum_of_squares(in_a_row)(params, x),
    )


@pytest.mark.parametrize(
    ("dilations", "length"),
    [
        ([2**k for k in range(10)] * 3, 10),
        ([1, 2] * 8, 2),
        ([1, 1, 1], 1),
        ([1, 2, 1], 3),
        ([1, 2, 1, 2, 1], 5),
    ],
)
def test_a_cycle_is_the_shortest_that_is_repeated(dilations, length):
    assert cycle_length(dilations) == length


@pytest.mark.parametrize(
    ("kernel_size", "dilations", "expected"),
    [
        (3, [2**k for k in range(10)] * 3, 6139),  # the WaveNet of the paper
        (3, [1, 1, 2, 3, 4, 5, 6, 7, 8, 1], 77),  # the discriminator
        (3, [1, 2] * 8, 49),  # the context of ASR features
        (1, [1, 9], 1),
        (5, [], 1),
    ],
)
def test_receptive_fields_are_those_of_the_paper(kernel_size, dilations, expected):
    assert receptive_field(kernel_size, dilations) == expected
