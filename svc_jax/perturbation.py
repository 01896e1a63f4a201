"""Speech as another speaker would have said it, in the front end of Wav2Letter."""

import jax
import jax.numpy as jnp

_KNEE = 0.85  # of the band: from here on, the warped axis bends towards its end


def warp_filters(filters, warp):
    """Mel filters through which a spectrum looks stretched (vocal tract length).

    A warp of 1.1 raises the formants by a tenth, as a shorter vocal tract does
    (Jaitly & Hinton 2013); the end of the band stays where it is.

    Args:
      filters: [K, M] over the bins of a spectrum.
      warp: [B].

    Returns:
      [B, K, M].
    """
    last = filters.shape[0] - 1
    position = jnp.arange(last + 1)[None] / last
    warp = warp[:, None]
    knee = _KNEE * jnp.minimum(1.0, 1.0 / warp)
    slope = (1.0 - warp * knee) / (1.0 - knee)
    warped = jnp.where(position < knee, warp * position, 1.0 + slope * (position - 1.0))
    return _read_at(filters[None], warped * last)


def stretch_time(frames, num_frames, speed):
    """Frames as of a recording that is `speed` times as fast.

    Args:
      frames: [B, T, C].
      num_frames: [B] real ones of the T.
      speed: [B]; where it is below one, (num_frames - 1) / speed must be below T.

    Returns:
      ([B, T, C], num_frames [B] of them).
    """
    last = num_frames - 1
    position = jnp.minimum(
        jnp.arange(frames.shape[1])[None] * speed[:, None], last[:, None]
    )
    return _read_at(frames, position), 1 + (last / speed).astype(jnp.int32)


def _read_at(rows, position):
    """Rows between rows, linearly: [B or 1, T, C] at [B, P] -> [B, P, C]."""
    rows = jnp.broadcast_to(rows, (position.shape[0], *rows.shape[1:]))
    left = jnp.clip(position.astype(jnp.int32), 0, rows.shape[1] - 2)
    share = (position - left)[..., None]
    below = jnp.take_along_axis(rows, left[..., None], axis=1)
    above = jnp.take_along_axis(rows, left[..., None] + 1, axis=1)
    return below + share * (above - below)


def mask_time(rng, mfcc, num_masks: int, longest: int):
    """Zeros a few random spans of frames (SpecAugment, arXiv 1904.08779).

    Args:
      rng: a key.
      mfcc: [B, T, D].
      num_masks: spans per example.
      longest: frames in a span at most.
    """
    batch_size, total, _ = mfcc.shape
    rng_start, rng_length = jax.random.split(rng)
    shape = (batch_size, num_masks, 1)
    start = jax.random.randint(rng_start, shape, 0, total)
    length = jax.random.randint(rng_length, shape, 0, longest + 1)
    frame = jnp.arange(total)[None, None]
    masked = ((frame >= start) & (frame < start + length)).any(axis=1)
    return jnp.where(masked[..., None], 0.0, mfcc)
