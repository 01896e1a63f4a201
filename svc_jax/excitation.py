"""What a generator sings from: f0 on any grid, its sine, its pulses, and noise.

The phase is carried in whole 2^-32 turns, so that it does not drift (method.md, 1).
"""

import jax
import jax.numpy as jnp
import numpy as np

from svc_jax.geometry import NOISE_BLOCK

SINE_AMPLITUDE = 0.1
NOISE_DEVIATION = 0.003


def _following(f0_hz):
    """f0 of the frame after each; the last one is held."""
    return jnp.concatenate([f0_hz[:, 1:], f0_hz[:, -1:]], axis=1)


def interpolate_f0(f0_hz, hop_in: int, hop_out: int, num_out: int):
    """Moves f0 to another frame grid without crossing a voiced/unvoiced edge.

    Linear between two voiced frames; at an edge each point takes the nearest frame;
    after the last frame its value is held.

    Args:
      f0_hz: [B, T] in Hz on a grid of hop_in samples, 0 where unvoiced.
      hop_in: in samples.
      hop_out: in samples.
      num_out: frames to return.

    Returns:
      [B, num_out] in Hz on a grid of hop_out samples.
    """
    position = np.arange(num_out, dtype=np.int64) * hop_out
    index = np.minimum(position // hop_in, f0_hz.shape[1] - 1)
    fraction = ((position - index * hop_in) / hop_in).clip(0, 1)[None]
    fraction = fraction.astype(np.float32)
    return _between(f0_hz[:, index], _following(f0_hz)[:, index], fraction)


def _between(left, right, fraction):
    """f0 between two frames: linear if both are voiced, else that of the nearer one."""
    nearest = jnp.where(fraction < 0.5, left, right)
    return jnp.where(
        (left > 0) & (right > 0), left + (right - left) * fraction, nearest
    )


def sample_f0(f0_hz, hop_length: int):
    """f0 at the sample rate; see `interpolate_f0`. [B, T] -> [B, T * hop_length]."""
    within = _within(f0_hz, _following(f0_hz), hop_length)
    return within.reshape(f0_hz.shape[0], -1)


def _within(left, right, hop_length: int):
    """f0 at every sample between two frames: [B, T], [B, T] -> [B, T, hop_length]."""
    fraction = (np.arange(hop_length) / hop_length).astype(np.float32)[None, None]
    return _between(left[..., None], right[..., None], fraction)


def _running_hz(left, right, hop_length: int):
    """Sum of f0 over the samples of each frame interval so far.

    Args:
      left: [B, T] in Hz, f0 at the interval's beginning.
      right: [B, T] in Hz, at its end.
      hop_length: its samples.

    Returns:
      [B, T, hop_length].
    """
    both = (left > 0) & (right > 0)
    # Samples 0..half-1 of an interval are nearest to its left frame.
    half = -(-hop_length // 2)
    k = np.arange(hop_length)
    ramp, count, count_left, count_right = (
        values.astype(np.float32)[None, None]
        for values in (
            k * (k + 1) / (2 * hop_length),
            k + 1,
            np.minimum(k + 1, half),
            np.maximum(k + 1 - half, 0),
        )
    )
    return jnp.where(
        both[..., None],
        left[..., None] * count + (right - left)[..., None] * ramp,
        left[..., None] * count_left + right[..., None] * count_right,
    )


def frame_advance(f0_hz, following_hz, *, sample_rate: int, hop_length: int):
    """How far the sine turns from each frame to the following one.

    Args:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      following_hz: [B, T], f0 of the frames after these.
      sample_rate: in Hz.
      hop_length: in samples.

    Returns:
      [B, T] int32, in 2^-32 turns modulo one turn.
    """
    scale = 2**32 * hop_length / sample_rate
    # Shares of the two ends in an interval's sum, between voiced frames and at an edge.
    late = (hop_length - 1) / (2 * hop_length)
    half = -(-hop_length // 2) / hop_length
    return jnp.where(
        (f0_hz > 0) & (following_hz > 0),
        _units(f0_hz, scale * (1 - late)) + _units(following_hz, scale * late),
        _units(f0_hz, scale * half) + _units(following_hz, scale * (1 - half)),
    )


def to_turns(units):
    """int32 in 2^-32 turns -> float32 turns, [-0.5, 0.5]."""
    return units.astype(jnp.float32) * 2.0**-32


def frame_phase(f0_hz, *, sample_rate: int, hop_length: int):
    """Phase of the sine before each frame, without drift.

    Every frame interval advances by a whole number of 2^-32 turns, added modulo one
    turn as int32 wraps. (float32 modulo 1 drifts 0.05 rad in an hour.)

    Args:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      sample_rate: in Hz.
      hop_length: in samples.

    Returns:
      [B, T] in turns, [-0.5, 0.5].
    """
    advance = frame_advance(
        f0_hz, _following(f0_hz), sample_rate=sample_rate, hop_length=hop_length
    )
    return to_turns(jnp.cumsum(advance, axis=1, dtype=jnp.int32) - advance)


def _units(hz, scale: float):
    """round(hz * scale) modulo 2^32 within 1, int32; hz in float32 is too coarse.

    `scale` is below 2^31: a frame is shorter than half a second.
    """
    whole = jnp.floor(hz)
    rest = whole * (scale - int(scale)) + (hz - whole) * scale
    whole_units = whole.astype(jnp.int32) * jnp.int32(int(scale))
    return whole_units + jnp.round(rest).astype(jnp.int32)


def excitation_phase(f0_hz, *, sample_rate: int, hop_length: int):
    """Phase of the sine, the running sum of f0; see `frame_phase`.

    Args:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      sample_rate: in Hz.
      hop_length: in samples.

    Returns:
      [B, T * hop_length] in turns, [0, 1).
    """
    start = frame_phase(f0_hz, sample_rate=sample_rate, hop_length=hop_length)
    within = _running_hz(f0_hz, _following(f0_hz), hop_length) / sample_rate
    return ((start[..., None] + within) % 1.0).reshape(f0_hz.shape[0], -1)


def sine_excitation(
    f0_hz, noise, phase, *, sample_rate: int, hop_length: int, num_harmonics: int = 0
):
    """A sine at the voice's pitch, noise where it has none (method.md, section 1).

    NSF's formula (arXiv 1810.11946). A harmonic above the Nyquist frequency is silent.

    Args:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      noise: [B, T * hop_length], standard normal.
      phase: [B], where the sine starts, in turns.
      sample_rate: in Hz.
      hop_length: in samples.
      num_harmonics: beside the fundamental; 0 is the paper.

    Returns:
      [B, T * hop_length, 1 + num_harmonics].
    """
    order = np.arange(1, num_harmonics + 2, dtype=np.float32)[None, None]
    f0_samples = sample_f0(f0_hz, hop_length)[..., None]
    turns = excitation_phase(f0_hz, sample_rate=sample_rate, hop_length=hop_length)
    turns = (turns + phase[:, None])[..., None] * order % 1.0
    audible = f0_samples * order < sample_rate / 2
    sine = SINE_AMPLITUDE * jnp.sin(2 * np.pi * turns) * audible
    noise = noise[..., None] * NOISE_DEVIATION
    unvoiced = SINE_AMPLITUDE / (3 * NOISE_DEVIATION) * noise
    return jnp.where(f0_samples > 0, sine + noise, unvoiced)


def _sample_turns(f0_hz, following_hz, phase, sample_rate: int, hop_length: int):
    """Phase of the sine and f0 at every sample of frame intervals.

    Args:
      f0_hz, following_hz, phase, sample_rate, hop_length: as in `pulse_train`.

    Returns:
      (turns, in [-0.5, 0.5]; f0 in Hz), [B, T, hop_length].
    """
    f0_samples = _within(f0_hz, following_hz, hop_length)
    running = _running_hz(f0_hz, following_hz, hop_length)
    turns = phase[..., None] + running / sample_rate
    return turns - jnp.round(turns), f0_samples


def sine(f0_hz, following_hz, phase, *, sample_rate: int, hop_length: int):
    """The fundamental alone; arguments, and power where voiced, as of `pulse_train`."""
    turns, f0_samples = _sample_turns(
        f0_hz, following_hz, phase, sample_rate, hop_length
    )
    return jnp.where(f0_samples > 0, np.sqrt(2) * jnp.cos(2 * np.pi * turns), 0.0)


def pulse_train(f0_hz, following_hz, phase, *, sample_rate: int, hop_length: int):
    """All harmonics below the Nyquist frequency at once: a pulse train without aliases.

    The sum of K cosines has a closed form (Dirichlet's kernel), so that its cost does
    not depend on K. The highest harmonic fades as it nears the Nyquist frequency: a
    glide adds and drops harmonics without a click.

    Args:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      following_hz: [B, T], f0 of the frames after these.
      phase: [B, T], of the fundamental before each frame, in turns.
      sample_rate: in Hz.
      hop_length: in samples.

    Returns:
      [B, T, hop_length], of power about 1 where voiced, at any pitch; 0 elsewhere.
    """
    # Near a pulse the turns are small, and so exact.
    turns, f0_samples = _sample_turns(
        f0_hz, following_hz, phase, sample_rate, hop_length
    )
    voiced = f0_samples > 0
    # How many harmonics fit below the Nyquist frequency, as a real number.
    ratio = sample_rate / 2 / jnp.where(voiced, f0_samples, 1.0)
    ratio = jnp.maximum(ratio, 1.0)
    highest = jnp.floor(ratio)
    half_angle = np.pi * turns
    at_pulse = jnp.abs(turns) < 1e-6
    below = jnp.where(
        at_pulse,
        2 * highest - 1,
        jnp.sin((2 * highest - 1) * half_angle)
        / jnp.where(at_pulse, 1.0, jnp.sin(half_angle)),
    )
    fading = (ratio - highest) * jnp.cos(2 * highest * half_angle)
    pulses = (below - 1) / 2 + fading
    return jnp.where(voiced, pulses * jnp.sqrt(2 / ratio), 0.0)


def block_noise(rng, num_samples: int, first_block: int = 0):
    """Noise as a function of (rng, absolute block), so that chunks agree with the whole.

    Args:
      rng: a key from `jax.random.key`.
      num_samples: how many to return.
      first_block: index of the first block of NOISE_BLOCK samples.

    Returns:
      ([num_samples] uniform in [0, 1), [num_samples] standard normal).
    """
    num_blocks = -(-num_samples // NOISE_BLOCK)

    def draw(block):
        rng_uniform, rng_normal = jax.random.split(jax.random.fold_in(rng, block))
        uniform = jax.random.uniform(rng_uniform, (NOISE_BLOCK,))
        return uniform, jax.random.normal(rng_normal, (NOISE_BLOCK,))

    uniform, normal = jax.vmap(draw)(first_block + jnp.arange(num_blocks))
    return uniform.reshape(-1)[:num_samples], normal.reshape(-1)[:num_samples]
