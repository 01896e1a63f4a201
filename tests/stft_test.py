"""The transform and its inverse: one gives back what the other took."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_jax import stft


def noise(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


@jax.jit
def there_and_back(hops):
    margin = ((0, 0), (stft.BEFORE, stft.AFTER), (0, 0))
    spectra = stft.forward(jnp.pad(hops, margin))
    margin = ((0, 0), (stft.AFTER, stft.BEFORE), (0, 0))
    real = jnp.ones((*hops.shape[:2], 1))
    return stft.inverse(jnp.pad(spectra, margin), jnp.pad(real, margin))


@settings(deadline=None, max_examples=10)
@given(
    num_hops=st.integers(1, 12),
    hop_length=st.sampled_from([4, 160, 441]),
    seed=st.integers(0, 99),
)
def test_the_inverse_of_the_transform_is_the_identity(num_hops, hop_length, seed):
    hops = noise(2, num_hops, hop_length, seed=seed)
    assert np.abs(there_and_back(hops) - hops).max() < 1e-5


def test_frames_are_those_of_numpy():
    hop_length, num_hops = 40, 9
    hops = noise(2, num_hops, hop_length)
    padded = np.pad(hops, ((0, 0), (2, 1), (0, 0))).astype(np.float64)
    audio = padded.reshape(2, -1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(160) / 160)
    expected = [
        np.fft.rfft(audio[:, t * 40 : t * 40 + 160] * window) for t in range(num_hops)
    ]
    found = jax.jit(stft.forward)(np.float32(padded))
    assert found.shape == (2, num_hops, 2 * stft.num_bins(hop_length))
    real, imaginary = np.split(np.asarray(found), 2, axis=-1)
    np.testing.assert_allclose(real + 1j * imaginary, np.stack(expected, 1), atol=1e-4)


def test_a_lone_frame_sounds_in_its_own_hops():
    spectra = np.zeros((1, 12, 2 * stft.num_bins(8)), np.float32)
    spectra[0, 5] = noise(2 * stft.num_bins(8))
    audio = np.asarray(jax.jit(stft.inverse)(spectra, np.ones((1, 12, 1), np.float32)))
    heard = np.flatnonzero(np.abs(audio[0]).max(axis=1) > 1e-6)
    # Frame 5 stands, behind a margin of one, at hop 4: it looks at hops 2 to 5.
    assert list(heard) == [2, 3, 4, 5]
