"""Loss terms: pure functions of arrays (method.md, section 3)."""

import jax.numpy as jnp
import optax

from svc_jax import dsp


def discriminator_loss(real_judges, fake_judges):
    """Least squares: real towards 1, fake towards 0; the mean over judges.

    Args:
      real_judges: of each judge its feature maps, the last the logits, of any shape.
      fake_judges: likewise.

    Returns:
      Scalar.
    """
    pairs = zip(real_judges, fake_judges, strict=True)
    return sum(
        jnp.mean(jnp.square(1 - real[-1])) + jnp.mean(jnp.square(fake[-1]))
        for real, fake in pairs
    ) / len(real_judges)


def adversarial_loss(fake_judges):
    """Least squares: fake towards 1; the mean over judges, as `discriminator_loss`."""
    return sum(jnp.mean(jnp.square(1 - maps[-1])) for maps in fake_judges) / len(
        fake_judges
    )


def feature_matching(real_judges, fake_judges):
    """Mean distance of the judges' inner maps, in units of the real maps' size.

    MelGAN's loss (arXiv 1910.06711), each map scaled by its mean magnitude, so that no
    layer outweighs the others.

    Args:
      real_judges: of each judge its feature maps, the last the logits.
      fake_judges: likewise, of the same shapes.

    Returns:
      Scalar: mean over all maps but the logits.
    """
    distances = [
        jnp.mean(jnp.abs(real - fake)) / (jnp.mean(jnp.abs(real)) + 1e-6)
        for real_maps, fake_maps in zip(real_judges, fake_judges, strict=True)
        for real, fake in zip(real_maps[:-1], fake_maps[:-1], strict=True)
    ]
    return sum(distances) / len(distances)


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
