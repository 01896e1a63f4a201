"""Changes the sample rate within a compiled program, gradient and all."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from svc_jax import dsp

ZERO_CROSSINGS = 48  # of the sinc, to each side
ROLLOFF = 0.95  # where the passband ends, as a share of the lower Nyquist frequency
KAISER_BETA = 9.0
MIN_BLOCK = 160  # output samples computed by one row of the matrix product


@functools.cache
def _polyphase(up: int, down: int) -> tuple[np.ndarray, int]:
    """A windowed-sinc resampler as a matrix, [down + 2 * reach, up], and its reach.

    Column k holds the filter of the k-th of `up` output samples over the `down` input
    samples of its block and `reach` to each side.
    """
    cutoff = ROLLOFF * min(1.0, up / down)  # of the input's Nyquist frequency
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    centre = np.arange(up) * down / up
    distance = np.arange(-reach, down + reach)[:, None] - centre
    inside = np.clip(1 - np.square(distance / reach), 0, None)
    window = np.i0(KAISER_BETA * np.sqrt(inside)) / np.i0(KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window * (np.abs(distance) <= reach)
    return (taps / taps.sum(axis=0)).astype(np.float32), reach


def resample(audio, rate_in: int, rate_out: int):
    """Audio at another sample rate, by a Kaiser-windowed sinc.

    Flat to within 0.01 dB up to 90 % of the lower Nyquist frequency; what would alias
    into that band is at least 80 dB down. A block of samples is one matrix product.

    Args:
      audio: [B, N].
      rate_in: in Hz.
      rate_out: in Hz.

    Returns:
      [B, ceil(N * rate_out / rate_in)]; beyond its ends the audio is silent.
    """
    if rate_in == rate_out:
        return audio
    common = math.gcd(rate_in, rate_out)
    blocks = -(-MIN_BLOCK * common // rate_out)
    up, down = blocks * rate_out // common, blocks * rate_in // common
    matrix, reach = _polyphase(up, down)
    num_samples = audio.shape[-1]
    num_blocks = -(-num_samples // down)
    padding = num_blocks * down - num_samples
    padded = jnp.pad(audio, ((0, 0), (reach, reach + padding)))
    frames = dsp.frame(padded, down + 2 * reach, down)
    resampled = (frames @ matrix).reshape(audio.shape[0], num_blocks * up)
    return resampled[:, : -(-num_samples * rate_out // rate_in)]
