"""Resampling against the analytic truth, and against soxr."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from svc_jax import resampling

EDGE = 400  # output samples that the silence beyond the ends bends


@functools.cache
def resampler(rate_in, rate_out):
    return jax.jit(lambda audio: resampling.resample(audio, rate_in, rate_out))


def tone(hz, rate, seconds=1.0):
    time = np.arange(round(rate * seconds)) / rate
    return np.sin(2 * np.pi * hz * time + hz)[None]


def level_db(audio):
    return 10 * math.log10(2 * np.mean(np.square(np.float64(audio))) + 1e-30)


@pytest.mark.parametrize(
    "rates", [(44_100, 16_000), (48_000, 16_000), (16_000, 44_100)]
)
@pytest.mark.parametrize("hz", [40, 997, 4000, 7100])
def test_a_tone_below_the_rolloff_stays_what_it_was(rates, hz):
    rate_in, rate_out = rates
    found = resampler(*rates)(np.float32(tone(hz, rate_in)))[0, EDGE:-EDGE]
    expected = tone(hz, rate_out)[0, EDGE:-EDGE]
    assert np.abs(found - expected).max() < 2e-3
    assert abs(level_db(found)) < 0.01


@pytest.mark.parametrize("hz", [8400, 8800, 12_000, 15_100, 21_000])
def test_what_would_alias_is_80_db_down(hz):
    found = resampler(44_100, 16_000)(np.float32(tone(hz, 44_100)))[0, EDGE:-EDGE]
    assert level_db(found) < -80


def test_lengths_are_exact_and_rows_are_alone():
    audio = np.float32(np.random.default_rng(0).standard_normal((2, 44_100)))
    for size in (1, 440, 441, 442, 882, 4410):
        found = resampler(44_100, 16_000)(audio[:, :size])
        assert found.shape == (2, -(-size * 16_000 // 44_100))
    both = resampler(44_100, 16_000)(audio)
    alone = resampler(44_100, 16_000)(audio[1:])
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)


def test_it_hears_what_soxr_hears():
    rng = np.random.default_rng(0)
    # Noise below 7 kHz, where both are flat.
    spectrum = np.fft.rfft(rng.standard_normal(44_100))
    spectrum[7000:] = 0
    audio = np.float32(np.fft.irfft(spectrum))
    expected = soxr.resample(audio, 44_100, 16_000, quality="VHQ")
    found = np.asarray(resampler(44_100, 16_000)(audio[None]))[0]
    difference = (found - expected)[EDGE:-EDGE]
    assert level_db(difference) < level_db(expected) - 60


def test_the_same_rate_is_the_same_audio():
    audio = jnp.ones((1, 100))
    assert resampling.resample(audio, 16_000, 16_000) is audio
