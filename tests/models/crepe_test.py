"""CREPE against float64 NumPy and against torchcrepe's published activations."""

import jax
import numpy as np
import pytest

from svc_jax import weights
from svc_jax.errors import UserError
from svc_jax.models.crepe import Crepe, fourier, toeplitz

FRAMES = jax.ShapeDtypeStruct((3, 1024), np.float32)
UNITS = {"tiny": 4, "small": 8, "medium": 16, "large": 24, "full": 32}


def abstract_params(capacity):
    return jax.eval_shape(Crepe(capacity).init, jax.random.key(0), FRAMES)["params"]


@pytest.mark.parametrize("capacity", UNITS)
def test_every_capacity_has_its_layers(capacity):
    unit = UNITS[capacity]
    channels = [1, *(unit * filters for filters in (32, 4, 4, 4, 8, 16))]
    expected = {"classifier": {"kernel": (4 * channels[-1], 360), "bias": (360,)}}
    for number in range(1, 7):
        before, after = channels[number - 1 : number + 1]
        width = 512 if number == 1 else 64
        expected[f"conv{number}"] = {"kernel": (width, before, after), "bias": (after,)}
        names = ("scale", "bias", "mean", "var")
        expected[f"norm{number}"] = {name: (after,) for name in names}
    params = abstract_params(capacity)
    assert jax.tree.map(lambda x: x.shape, params) == expected


@pytest.mark.parametrize(
    ("capacity", "published"), [("tiny", 487_096), ("full", 22_244_328)]
)
def test_parameters_are_as_many_as_published(capacity, published):
    leaves = jax.tree.leaves(abstract_params(capacity))
    assert sum(leaf.size for leaf in leaves) == published


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_every_frame_gets_an_activation_and_an_embedding(leading):
    frames = jax.ShapeDtypeStruct((*leading, 1024), np.float32)
    params = abstract_params("tiny")
    result = jax.eval_shape(Crepe("tiny").apply, {"params": params}, frames)
    # After five halvings of 256 steps, 8 are left, of 8 * 4 channels.
    assert [x.shape for x in result] == [(*leading, 360), (*leading, 8 * 32)]


def float64_convolution(x, kernel, stride, before, after):
    """[N, C], [K, C, C'] -> [N', C'], zeros before and after."""
    padded = np.pad(x, ((before, after), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
    return np.einsum("nck,kcd->nd", windows[::stride], kernel, optimize=True)


def float64_crepe(params, frame):
    """method.md, section 7: [1024] -> activation [360], embedding [D]."""
    x = frame[:, None]
    for number in range(1, 7):
        conv, norm = params[f"conv{number}"], params[f"norm{number}"]
        stride, *padding = (4, 254, 254) if number == 1 else (1, 31, 32)
        x = float64_convolution(x, conv["kernel"], stride, *padding) + conv["bias"]
        x = np.maximum(x, 0)
        x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-3)
        x = x * norm["scale"] + norm["bias"]
        x = np.maximum(x[::2], x[1::2])
        if number == 5:
            embedding = x.ravel()
    logits = x.ravel() @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    return 1 / (1 + np.exp(-logits)), embedding


def random_params(capacity):
    """Weights that keep the scale, and statistics, slopes and shifts of any sign."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name == "kernel":
            return normal / np.sqrt(np.prod(leaf.shape[:-1]) / 2)
        return rng.uniform(0.3, 2, leaf.shape) if name == "var" else 0.5 * normal

    return jax.tree_util.tree_map_with_path(draw, abstract_params(capacity))


def test_tiny_computes_what_the_method_says():
    params = random_params("tiny")
    frames = np.random.default_rng(0).standard_normal((2, 2, 1024))
    single = jax.tree.map(np.float32, params)
    result = jax.jit(Crepe("tiny").apply)({"params": single}, np.float32(frames))
    rows = [float64_crepe(params, frame) for frame in frames.reshape(4, 1024)]
    for part, expected in zip(result, zip(*rows, strict=True), strict=True):
        assert np.std(expected) > 0.05
        np.testing.assert_allclose(part.reshape(4, -1), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("num_samples", "kernel_size", "stride", "padding", "block"),
    [
        (64, 16, 4, (6, 6), 4),
        (64, 16, 4, (6, 6), 16),
        (12, 5, 1, (2, 2), 3),
        (8, 64, 1, (31, 32), 8),
        (8, 64, 1, (31, 32), 1),
        (9, 4, 2, (0, 1), 2),
    ],
)
def test_a_band_matrix_is_a_convolution(
    num_samples, kernel_size, stride, padding, block
):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, num_samples, 3))
    kernel = rng.standard_normal((kernel_size, 3, 5))
    expected = [float64_convolution(row, kernel, stride, *padding) for row in x]
    arguments = np.float32(x), np.float32(kernel)
    product = jax.jit(toeplitz, static_argnums=(2, 3, 4))
    result = product(*arguments, stride, padding, block)
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("num_samples", "padding"),
    [(128, (31, 32)), (8, (31, 32)), (9, (2, 2)), (7, (0, 5)), (16, (4, 0))],
)
def test_a_product_of_spectra_is_a_convolution(num_samples, padding):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, num_samples, 3))
    kernel = rng.standard_normal((sum(padding) + 1, 3, 5))
    expected = [float64_convolution(row, kernel, 1, *padding) for row in x]
    product = jax.jit(fourier, static_argnums=2)
    result = product(np.float32(x), np.float32(kernel), padding)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def published(capacity):
    try:
        return weights.crepe(capacity, allow_download=False).params
    except UserError as error:
        pytest.skip(f"needs CREPE's weights: {error}")


# Every frame of tiny; of full, 40 times as costly, one in forty.
@pytest.mark.parametrize(("capacity", "every"), [("tiny", 1), ("full", 40)])
def test_the_published_weights_give_torchcrepes_activations(test_data, capacity, every):
    folder = test_data / "golden/crepe"
    frames = np.load(folder / "frames-crepe.npy")[::every]
    expected = np.load(folder / f"activation-{capacity}.npy")[::every]
    apply = jax.jit(Crepe(capacity).apply)
    activation, _ = apply({"params": published(capacity)}, frames)
    assert expected.max() > 0.9
    np.testing.assert_allclose(activation, expected, rtol=0, atol=1e-5)
