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
      [B, T, 2 F]: real parts, then imaginary ones.
    """
    total = hops.shape[1] - BEFORE - AFTER
    frames = jnp.concatenate([hops[:, k : k + total] for k in range(OVERLAP)], axis=-1)
    spectra = jnp.fft.rfft(frames * _window(hops.shape[-1]))
    return jnp.concatenate([spectra.real, spectra.imag], axis=-1)


def _to_signal(real, imaginary):
    """The real signal of a spectrum: [B, T, F], [B, T, F] -> [B, T, 2 (F - 1)].

    Hartley's transform is its own inverse, and a real one, which ONNX can say, too.
    """

    def hartley(real, imaginary):
        # The ends, of frequency 0 and Nyquist's, are real and have no mirror image.
        mirrored = (real + imaginary)[..., -2:0:-1]
        return jnp.concatenate([real - imaginary, mirrored], axis=-1)

    inside = np.ones((1, 1, real.shape[-1]), np.float32)
    inside[..., [0, -1]] = 0.0
    spectrum = jnp.fft.rfft(hartley(real, imaginary * inside))
    return hartley(spectrum.real, spectrum.imag) / (2 * real.shape[-1] - 2)


def inverse(spectra, real):
    """The signal of spectra by weighted overlap-add; of `forward`'s, the same signal.

    Args:
      spectra: [B, AFTER + T + BEFORE, 2 F], as from `forward`.
      real: [B, AFTER + T + BEFORE, 1], 1 for frames that exist, 0 for the margin of a
        signal's ends, which counts neither in the sum nor in its weight.

    Returns:
      [B, T, hop_length]; 0 where no frame is.
    """
    hop_length = (spectra.shape[-1] - 2) // OVERLAP
    window = _window(hop_length)
    frames = _to_signal(*jnp.split(spectra, 2, axis=-1)) * window * real

    def overlap_add(frames):
        total = frames.shape[1] - BEFORE - AFTER
        parts = frames.reshape(*frames.shape[:2], OVERLAP, hop_length)
        return sum(
            parts[:, OVERLAP - 1 - k : OVERLAP - 1 - k + total, k]
            for k in range(OVERLAP)
        )

    weight = overlap_add(jnp.square(window) * real)
    return overlap_add(frames) / jnp.maximum(weight, _EPSILON)
