"""Loss terms: pure functions of arrays (method.md, section 3)."""

import jax.numpy as jnp
import optax

from svc_jax import dsp


def discriminator_loss(real_logits, fake_logits):
    """Least squares: real towards 1, fake towards 0. Scores of any shape -> scalar."""
    return jnp.mean(jnp.square(1 - real_logits)) + jnp.mean(jnp.square(fake_logits))


def adversarial_loss(fake_logits):
    """Least squares: fake towards 1. Scores of any shape -> scalar."""
    return jnp.mean(jnp.square(1 - fake_logits))


def _norm(x):
    """Frobenius norm over the last two axes, with gradient 0 at 0."""
    squared = jnp.sum(jnp.square(x), axis=(-2, -1))
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def spectral_loss(fake, real, fft_sizes):
    """Multi-scale spectral distance: convergence + log magnitude, hop FFT/4, Hann.

    The first term weighs the peaks, the second the silent parts.

    Args:
      fake: [B, N].
      real: [B, N].
      fft_sizes: in samples.

    Returns:
      Scalar: mean over sizes and examples.
    """
    total = 0.0
    for n_fft in fft_sizes:
        fake_spectrum = dsp.spectrogram(fake, n_fft, n_fft // 4)
        real_spectrum = dsp.spectrogram(real, n_fft, n_fft // 4)
        convergence = _norm(real_spectrum - fake_spectrum) / _norm(real_spectrum)
        log_distance = jnp.abs(jnp.log(real_spectrum) - jnp.log(fake_spectrum))
        total += jnp.mean(convergence + jnp.mean(log_distance, axis=(-2, -1)))
    return total / len(fft_sizes)


def feature_distance(fake, real, scale):
    """Mean absolute difference in units of `scale`. Arrays of one shape -> scalar."""
    return jnp.mean(jnp.abs(fake - real)) / scale


def ctc_loss(logits, num_frames, labels, num_labels, blank: int):
    """CTC loss per example, per label (Graves et al. 2006, by optax).

    Args:
      logits: [B, A, C].
      num_frames: [B] real frames of the A.
      labels: [B, L] int32.
      num_labels: [B] real labels of the L.
      blank: index of the blank among the C.

    Returns:
      [B], negative log likelihood divided by the number of labels.
    """
    frame_padding = ~dsp.mask(num_frames, logits.shape[1])
    label_padding = ~dsp.mask(num_labels, labels.shape[1])
    loss = optax.ctc_loss(
        logits,
        frame_padding.astype(logits.dtype),
        labels,
        label_padding.astype(logits.dtype),
        blank_id=blank,
    )
    return loss / jnp.maximum(num_labels, 1)
