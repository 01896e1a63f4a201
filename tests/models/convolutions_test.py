"""Convolutions against loops in float64, and their gradients against their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax.models.convolutions import CONVOLUTIONS, convolve, convolve_as_product


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def looped_convolution(x, kernel, dilation, stride, before, after):
    """[B, N, C], [K, C, C'] -> [B, N', C'], one product at a time."""
    padded = np.pad(np.float64(x), ((0, 0), (before, after), (0, 0)))
    reach = dilation * (len(kernel) - 1)
    outputs = [
        sum(padded[:, start + k * dilation] @ kernel[k] for k in range(len(kernel)))
        for start in range(0, padded.shape[1] - reach, stride)
    ]
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "stride", "padding"),
    [
        (1, 1, 1, None),
        (3, 1, 1, None),
        (3, 4, 1, None),
        (5, 16, 1, None),  # wider than the input
        (4, 3, 1, (2, 7)),
        (1, 1, 2, (0, 0)),
        (6, 1, 2, (1, 4)),
        (1, 1, 1, (2, 1)),
    ],
)
def test_convolve_is_the_sum_over_taps(kernel_size, dilation, stride, padding):
    x, kernel = normal(2, 23, 3), normal(kernel_size, 3, 5, seed=1)
    reach = dilation * (kernel_size - 1)
    before, after = padding or (reach // 2, reach // 2)
    expected = looped_convolution(x, kernel, dilation, stride, before, after)
    assert padding or expected.shape[1] == 23
    options = {"dilation": dilation, "stride": stride, "padding": padding}
    result = jax.jit(functools.partial(convolve, **options))(x, kernel)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 4), (5, 16), (4, 3)]
)
def test_the_gradients_of_a_convolution_are_what_it_is_linear_in(
    form, kernel_size, dilation
):
    convolve = CONVOLUTIONS[form]
    x, kernel = normal(2, 23, 3), normal(kernel_size, 3, 5, seed=1)
    weights = normal(2, 23, 5, seed=2)
    reach = dilation * (kernel_size - 1)

    def weighted(x, kernel):
        return jnp.sum(weights * convolve(x, kernel, dilation=dilation))

    def looped(x, kernel):
        before, after = reach // 2, reach - reach // 2
        return np.sum(
            weights * looped_convolution(x, kernel, dilation, 1, before, after)
        )

    of_x, of_kernel = jax.jit(jax.grad(weighted, (0, 1)))(x, kernel)
    for seed in range(3, 8):
        x_step, kernel_step = (
            normal(*x.shape, seed=seed),
            normal(*kernel.shape, seed=seed),
        )
        expected = looped(x_step, kernel), looped(x, kernel_step)
        slopes = np.sum(of_x * x_step), np.sum(of_kernel * kernel_step)
        np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 4), (5, 16), (4, 3)])
def test_a_product_of_shifted_inputs_is_a_convolution(kernel_size, dilation):
    x, kernel = normal(2, 23, 3), normal(kernel_size, 3, 5, seed=1)
    reach = dilation * (kernel_size - 1)
    before, after = reach // 2, reach - reach // 2
    expected = looped_convolution(x, kernel, dilation, 1, before, after)
    found = jax.jit(functools.partial(convolve_as_product, dilation=dilation))(
        x, kernel
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
