"""Optimisers against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import optimizers
from svc_jax.types import NetworkState


def radam(gradients, learning_rates, epsilon):
    """RAdam (arXiv 1908.03265, algorithm 2), float64: parameters after each step."""
    beta1, beta2 = 0.9, 0.999
    m = v = x = np.zeros_like(gradients[0], np.float64)
    rho_inf = 2 / (1 - beta2) - 1
    path = []
    for t, (gradient, rate) in enumerate(
        zip(gradients, learning_rates, strict=True), 1
    ):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        mean = m / (1 - beta1**t)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho >= 5:
            length = np.sqrt(v / (1 - beta2**t))
            r = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            x = x - rate * np.sqrt(r) * mean / (length + epsilon)
        else:
            x = x - rate * mean
        path.append(x)
    return path


def test_updates_are_radam_with_the_global_norm_clipped():
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((12, 4)) * np.where(np.arange(12) < 6, 10, 0.1)[:, None]
    norm = np.linalg.norm(raw, axis=1, keepdims=True)
    clipped = raw * np.minimum(1, 2.0 / norm)
    rates = 0.1 * 0.5 ** (np.arange(12) // 4)
    expected = radam(clipped, rates, 1e-6)

    optimizer = optimizers.clipped_radam(2.0, 1e-6)
    schedule = optimizers.halving(0.1, 4)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    network = NetworkState(params, optimizer.init(params))
    for step in range(12):
        grads = {"a": jnp.asarray(raw[step, :2]), "b": jnp.asarray(raw[step, 2:])}
        network = optimizers.apply(optimizer, network, grads, schedule(step))
        found = np.concatenate([network.params["a"], network.params["b"]])
        np.testing.assert_allclose(found, expected[step], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1e-4), (199_999, 1e-4), (200_000, 5e-5), (399_999, 5e-5)]
)
def test_the_learning_rate_is_halved(step, expected):
    rate = jax.jit(optimizers.halving(1e-4, 200_000))(jnp.asarray(step))
    assert float(rate) == pytest.approx(expected, rel=1e-6)
