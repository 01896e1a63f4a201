"""From CREPE's activations, or from audio alone, to f0 (method.md, sections 1 and 7)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from svc_jax import dsp
from svc_jax.models.crepe import FRAME_LENGTH, NUM_BINS, Crepe

VOICED_CONFIDENCE = 0.5
CREPE_BLOCK = 256  # frames per example in memory at once
CENTS_OF_BIN_0 = 1997.3794084376191  # above 10 Hz
CENTS_PER_BIN = 20.0
_REACH = 4  # bins to each side of the peak that are averaged
_STEP = 11  # bins that the Viterbi path may move in a frame
_BLOCK = 512  # frames whose back-pointers are held at once
_NOTHING = -1  # instead of an observed bin: the path moves unseen
_AFTER = -2  # a frame past the end: the path stays, at no cost


def crepe_activation(crepe: Crepe, params, audio, hop_length: int):
    """What CREPE hears around every hop.

    Args:
      crepe: the network.
      params: its weights.
      audio: [B, N] at 16 kHz.
      hop_length: in samples.

    Returns:
      [B, 1 + N // hop_length, 360]; frame t is centred on sample t * hop_length. In
      digital silence, where the network would repeat its biases, all is 0.
    """
    half = FRAME_LENGTH // 2
    padded = jnp.pad(audio, ((0, 0), (half, half)))

    def listen(frames):
        activation, _ = crepe.apply({"params": params}, normalise_frames(frames, 1e-8))
        return activation * jnp.any(frames != 0, axis=-1, keepdims=True)

    return dsp.over_blocks(listen, padded, FRAME_LENGTH, hop_length, CREPE_BLOCK)


def normalise_frames(frames, floor: float):
    """[..., 1024] to mean 0 and deviation 1; a deviation below `floor` counts as it."""
    centred = frames - frames.mean(axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    # max before sqrt: the gradient of sqrt at 0 is infinite.
    return centred / jnp.sqrt(jnp.maximum(variance, floor**2))


def cents_to_hz(cents):
    """Cents above 10 Hz -> Hz."""
    return 10.0 * 2.0 ** (cents / 1200.0)


def hz_around(activation, path):
    """The activation-weighted mean of the pitches near a path of bins.

    Args:
      activation: [..., T, 360].
      path: [..., T] int32, bins.

    Returns:
      [..., T] in Hz.
    """
    offset = np.arange(-_REACH, _REACH + 1)
    bins = path[..., None] + offset.reshape((1,) * path.ndim + (-1,))
    inside = (bins >= 0) & (bins < NUM_BINS)
    index = jnp.clip(bins, 0, NUM_BINS - 1)
    weight = jnp.take_along_axis(activation, index, axis=-1) * inside
    mean_bin = (weight * bins).sum(axis=-1) / jnp.maximum(weight.sum(axis=-1), 1e-30)
    return cents_to_hz(CENTS_OF_BIN_0 + CENTS_PER_BIN * mean_bin)


def decode_argmax(activation):
    """f0 by the local average around the strongest bin of each frame.

    Args:
      activation: [..., T, 360].

    Returns:
      (f0_hz [..., T], confidence [..., T] in [0, 1]); f0 is given for every frame.
    """
    path = jnp.argmax(activation, axis=-1)
    return hz_around(activation, path), activation.max(axis=-1)


def decode_viterbi(activation, num_frames=None):
    """f0 by the local average around the likeliest path; see `viterbi_path`.

    Args:
      activation: [..., T, 360].
      num_frames: [...] real frames of the T, or None for all.

    Returns:
      (f0_hz [..., T], confidence [..., T] in [0, 1]); f0 is given for every frame.
    """
    path = viterbi_path(activation, num_frames)
    return hz_around(activation, path), activation.max(axis=-1)


def _log_transition() -> np.ndarray:
    """Log probability of moving by -11..11 bins, [360 from, 23]; -inf off the range.

    Rows of max(12 - |i - j|, 0), normalised over the 360 bins.
    """
    move = np.arange(-_STEP, _STEP + 1)
    to = np.arange(NUM_BINS)[:, None] + move
    weight = (12.0 - np.abs(move)) * ((to >= 0) & (to < NUM_BINS))
    with np.errstate(divide="ignore"):
        return np.log(weight / weight.sum(axis=1, keepdims=True))


def _transition_into() -> np.ndarray:
    """Log probability of coming from bin j - 11 + k into j, float32 [360 to, 23]."""
    table = np.full((NUM_BINS, 2 * _STEP + 1), -np.inf)
    out_of = _log_transition()
    for k in range(2 * _STEP + 1):
        source = np.arange(NUM_BINS) - _STEP + k
        inside = (source >= 0) & (source < NUM_BINS)
        table[inside, k] = out_of[source[inside], 2 * _STEP - k]
    return table.astype(np.float32)


def viterbi_path(activation, num_frames=None):
    """The likeliest path of pitch through the strongest bins.

    CREPE's model: uniform start; moves of less than 12 bins, nearer ones likelier; a
    bin is observed as itself with probability 0.1 + 0.9 / 360. A frame without any
    activation observes nothing, so that a pause does not bend the next note. Only the scores at the
    borders of blocks are kept; back-pointers are made again block by block on the way
    back, so that their memory does not grow with the length.

    Args:
      activation: [..., T, 360].
      num_frames: [...] real frames of the T, or None for all; the path stays where it
        is after them.

    Returns:
      [..., T] int32, bins.
    """
    return path_through(observed_bins(activation), num_frames)


def observed_bins(activation):
    """The strongest bin of each frame, -1 without any activation.

    Args:
      activation: [..., T, 360].

    Returns:
      [..., T] int32.
    """
    strongest = jnp.argmax(activation, axis=-1)
    return jnp.where(activation.max(axis=-1) > 0, strongest, _NOTHING)


def path_through(observed, num_frames=None):
    """`viterbi_path`, from all that it needs of the activation.

    Args:
      observed: [..., T] int32, from `observed_bins`.
      num_frames: [...] real frames of the T, or None for all.

    Returns:
      [..., T] int32, bins.
    """
    leading, total = observed.shape[:-1], observed.shape[-1]
    observed = observed.reshape(-1, total)
    if num_frames is not None:
        real = dsp.mask(num_frames.reshape(-1), total)
        observed = jnp.where(real, observed, _AFTER)
    num_blocks = -(-total // _BLOCK)
    padding = num_blocks * _BLOCK - total
    observed = jnp.pad(observed, ((0, 0), (0, padding)), constant_values=_AFTER)
    path = jax.vmap(_viterbi_blocks)(observed.reshape(-1, num_blocks, _BLOCK))
    return path.reshape(*leading, -1)[..., :total]


def _viterbi_blocks(observed):
    """[blocks, _BLOCK] observed bins, or negative marks -> [blocks, _BLOCK] path."""
    into = _transition_into()
    other, same = np.log(0.9 / NUM_BINS), np.log(0.1 + 0.9 / NUM_BINS)
    bins = np.arange(NUM_BINS)
    sources = bins[:, None] + np.arange(-_STEP, _STEP + 1)

    def emission(bin_observed):
        seen = jnp.where(bins == bin_observed, same, other)
        return jnp.where(bin_observed < 0, 0.0, seen)

    def arrivals(score):
        """Scores of coming from each neighbour, [360, 23]."""
        padded = jnp.pad(score, _STEP, constant_values=-jnp.inf)
        return padded[sources + _STEP] + into

    def advance(score, bin_observed):
        best = arrivals(score).max(axis=-1)
        best = jnp.where(bin_observed == _AFTER, score, best + emission(bin_observed))
        return best - best.max(), score

    def advance_block(score, block):
        return lax.scan(advance, score, block)[0], score

    # The first frame has no predecessor: a score whose arrivals are all equal.
    first = emission(observed[0, 0])
    start = first - first.max()
    rest = observed.reshape(-1).at[0].set(_AFTER).reshape(observed.shape)
    last, starts = lax.scan(advance_block, start, rest)

    def trace_block(bin_after, block_and_start):
        block, score = block_and_start
        _, scores = lax.scan(advance, score, block)

        def trace(bin_now, frame):
            bin_observed, score_before = frame
            pointer = jnp.argmax(arrivals(score_before)[bin_now])
            before = bin_now + pointer - _STEP
            before = jnp.where(bin_observed == _AFTER, bin_now, before)
            return before, bin_now

        return lax.scan(trace, bin_after, (block, scores), reverse=True)

    _, path = lax.scan(trace_block, jnp.argmax(last), (rest, starts), reverse=True)
    return path.astype(jnp.int32)


def median_filter(x, width: int):
    """Running median along the last axis; the ends see copies of the end value.

    Args:
      x: [B, T].
      width: odd, in frames.

    Returns:
      [B, T].
    """
    half = width // 2
    padded = jnp.pad(x, ((0, 0), (half, half)), mode="edge")
    shifted = [padded[:, k : k + x.shape[1]] for k in range(width)]
    return jnp.median(jnp.stack(shifted), axis=0)


def voiced_f0(f0_hz, confidence):
    """f0 with 0 where the median confidence of five frames is below one half.

    Args:
      f0_hz: [B, T].
      confidence: [B, T].

    Returns:
      [B, T].
    """
    return jnp.where(median_filter(confidence, 5) >= VOICED_CONFIDENCE, f0_hz, 0.0)


OCTAVE_SLIP_SECONDS = 0.25  # nobody sings an octave up and back in less
_AROUND_SECONDS = 0.5  # to each side: where the usual pitch is looked for
_OCTAVE_SLACK = 1.5  # semitones
_GLIDE_SECONDS = 0.08  # and less: how long a path glides into a slip, or out of it


def repair_octaves(f0_hz, frame_rate: float):
    """Takes back slips of an octave: short ones, from which the pitch returns.

    A frame has slipped if it is an octave, within a semitone and a half, from the
    median around it in its voiced run. A path that may move only so fast (Viterbi)
    glides into a slip and out of it; the glides become straight lines.

    Args:
      f0_hz: numpy [T] in Hz, 0 where unvoiced.
      frame_rate: in Hz.

    Returns:
      (float32 [T]; how many frames were changed).
    """
    repaired, longest = np.array(f0_hz, np.float32), OCTAVE_SLIP_SECONDS * frame_rate
    for first, last in _runs(repaired > 0):
        semitones = 12 * np.log2(repaired[first:last].astype(np.float64))
        off = semitones - _usual(semitones, round(_AROUND_SECONDS * frame_rate))
        for begin, end in _runs(np.abs(off) > _OCTAVE_SLACK):
            octave = 12 * np.sign(off[begin:end].sum())
            at_octave = np.abs(off[begin:end] - octave) <= _OCTAVE_SLACK
            slips = _runs(at_octave)
            if len(slips) != 1 or end - begin > longest:
                continue
            glides = max(slips[0, 0], end - begin - slips[0, 1])
            if glides > _GLIDE_SECONDS * frame_rate:
                continue
            semitones[begin:end] -= octave * at_octave
            gliding = np.flatnonzero(~at_octave) + begin
            known = np.delete(np.arange(len(semitones)), gliding)
            semitones[gliding] = np.interp(gliding, known, semitones[known])
            repaired[first:last][begin:end] = 2 ** (semitones[begin:end] / 12)
    return repaired, int((repaired != f0_hz).sum())


def _runs(condition) -> np.ndarray:
    """Where a condition [T] holds: [n, 2], first frame and the one after the last."""
    edges = np.diff(np.pad(condition, 1).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2)


def _usual(values, half: int):
    """Running median, [T]; the ends see what is there."""
    return np.asarray(
        [np.median(values[max(0, t - half) : t + half + 1]) for t in range(len(values))]
    )


YIN_MIN_HZ, YIN_MAX_HZ = 50.0, 1000.0
_YIN_THRESHOLD = 0.15


def yin(audio, sample_rate: int, hop_length: int):
    """YIN (de Cheveigne and Kawahara 2002): f0 without any weights.

    Args:
      audio: [B, N].
      sample_rate: in Hz.
      hop_length: in samples.

    Returns:
      (f0_hz, confidence), [B, 1 + N // hop_length]; confidence is 1 minus the
      normalised difference at the chosen period.
    """
    longest = int(sample_rate / YIN_MIN_HZ) + 2
    shortest = int(sample_rate / YIN_MAX_HZ)
    window = 2 * longest
    half = (window + longest) // 2
    padded = jnp.pad(audio, ((0, 0), (half, half)))
    frames = dsp.frame(padded, window + longest, hop_length)

    size = 1 << (2 * window).bit_length()
    spectrum = jnp.fft.rfft(frames, size)
    head = jnp.fft.rfft(frames[..., :window], size)
    correlation = jnp.fft.irfft(spectrum * head.conj(), size)[..., :longest]
    energy = jnp.cumsum(jnp.square(frames), axis=-1)
    energy = jnp.pad(energy, ((0, 0), (0, 0), (1, 0)))
    lagged = energy[..., window : window + longest] - energy[..., :longest]
    difference = jnp.maximum(lagged[..., :1] + lagged - 2 * correlation, 0.0)
    lag = np.arange(longest, dtype=np.float32)[None, None]
    total = jnp.cumsum(difference, axis=-1)
    normalised = jnp.where(total > 0, difference * lag / jnp.maximum(total, 1e-12), 1.0)

    inside = normalised[..., 1:-1]
    dip = (inside <= normalised[..., :-2]) & (inside < normalised[..., 2:])
    dip &= (lag >= shortest)[..., 1:-1]
    candidate = jnp.where(dip, inside, jnp.inf)
    good = candidate < _YIN_THRESHOLD
    index = jnp.where(good.any(-1), jnp.argmax(good, -1), jnp.argmin(candidate, -1)) + 1

    def at(offset):
        return jnp.take_along_axis(normalised, index[..., None] + offset, -1)[..., 0]

    curvature = at(-1) - 2 * at(0) + at(1)
    shift = jnp.where(curvature > 0, (at(-1) - at(1)) / (2 * curvature + 1e-12), 0.0)
    return sample_rate / (index + jnp.clip(shift, -1, 1)), 1.0 - jnp.minimum(at(0), 1.0)
