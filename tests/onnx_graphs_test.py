"""Graphs of any length, made of those of two lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import onnx_graphs

pytest.importorskip("jax2onnx")


def shapes(length):
    return [
        jax.ShapeDtypeStruct((1, length, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 2 * length), jnp.float32),
    ]


def graph(function):
    content = onnx_graphs.of_any_length(function, shapes, (10, 14), ("a", "b"), "c")
    return onnx_graphs.runner(content, ("a", "b"))


def smoothed(a, b):
    """[1, N, 3], [1, 2 N] -> [1, 2 N + 1]: pads, slices, repeats, loops."""
    b = jnp.pad(b, ((0, 0), (0, 1)))

    def body(carry, _):
        return carry * 0.5 + jnp.pad(carry[:, 1:], ((0, 0), (1, 0))), None

    b, _ = jax.lax.scan(body, b, length=3)
    a = jnp.repeat(a.sum(-1), 2, axis=1)
    return b + jnp.pad(a, ((0, 0), (1, 0))) + jnp.flip(jnp.cumsum(b, axis=1), axis=1)


@pytest.mark.parametrize("length", [1, 10, 37])
def test_a_graph_computes_what_the_function_does_at_other_lengths(length):
    rng = np.random.default_rng(0)
    inputs = [np.float32(rng.normal(size=s.shape)) for s in shapes(length)]
    expected = jax.jit(smoothed)(*inputs)
    own = dict(vars(jnp))
    np.testing.assert_allclose(graph(smoothed)(*inputs), expected, atol=1e-5)
    assert all(getattr(jnp, name) is value for name, value in own.items())


def test_a_function_that_is_another_one_at_each_length_is_refused():
    def windowed(_, b):
        return b * np.hanning(b.shape[1]).astype(np.float32)[None]

    with pytest.raises(ValueError, match="depends on the length, not linearly"):
        graph(windowed)

    def branching(a, b):
        return b * 2 if b.shape[1] > 25 else b + a.sum()

    with pytest.raises(ValueError, match="two lengths are made differently"):
        graph(branching)
