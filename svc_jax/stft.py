"""The short-time Fourier transform and its inverse, on the grid of the features.

A signal is held as hops, [B, T, hop_length]. Frame t looks at OVERLAP hops around the
beginning of hop t: two before it, two from it on. Before the first hop and after the
last one there is silence.
"""

import jax.numpy as jnp
import numpy as np

from svc_jax import dsp

OVERLAP = 4  # hops in a frame
BEFORE, AFTER = 2, 1  # hops that a frame sees to each side of its own
_EPSILON = 1e-8


def num_bins(hop_length: int) -> int:
    """Frequencies from 0 to the Nyquist frequency."""
    return OVERLAP * hop_length // 2 + 1


def _window(hop_length: int) -> np.ndarray:
    return dsp.hann(OVERLAP * hop_length)[None, None]


def forward(hops):
    """Hann-windowed spectra of the frames that hops with a margin make.

    Args:
      hops: [B, BEFORE + T + AFTER, hop_length], real.

    Returns:
      [B, T, F] complex.
    """
    total = hops.shape[1] - BEFORE - AFTER
    frames = jnp.concatenate([hops[:, k : k + total] for k in range(OVERLAP)], axis=-1)
    return jnp.fft.rfft(frames * _window(hops.shape[-1]))


def inverse(spectra, real):
    """The signal of spectra by weighted overlap-add; of `forward`'s, the same signal.

    Args:
      spectra: [B, AFTER + T + BEFORE, F] complex.
      real: [B, AFTER + T + BEFORE, 1], 1 for frames that exist, 0 for the margin of a
        signal's ends, which counts neither in the sum nor in its weight.

    Returns:
      [B, T, hop_length]; 0 where no frame is.
    """
    hop_length = (spectra.shape[-1] - 1) * 2 // OVERLAP
    window = _window(hop_length)
    frames = jnp.fft.irfft(spectra, OVERLAP * hop_length) * window * real

    def overlap_add(frames):
        total = frames.shape[1] - BEFORE - AFTER
        parts = frames.reshape(*frames.shape[:2], OVERLAP, hop_length)
        return sum(
            parts[:, OVERLAP - 1 - k : OVERLAP - 1 - k + total, k]
            for k in range(OVERLAP)
        )

    weight = overlap_add(jnp.square(window) * real)
    return overlap_add(frames) / jnp.maximum(weight, _EPSILON)
