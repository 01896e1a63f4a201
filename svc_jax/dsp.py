"""Signal processing, pure and jit-able (method.md, section 1).

Frames are centred: frame t looks at the audio around sample t * hop_length.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LOUDNESS_FFT = 2048
LOUDNESS_BLOCK = 2048  # frames in memory at once
NUM_MFCC = 13
MFCC_FFT = 512
MFCC_HOP = 160
DELTA_WIDTH = 9
LEAST_DEVIATION = 1e-2  # of an MFCC; rounding in float32 moves it by less


# Framing and spectra.


def mask(count, total: int):
    """True for the first `count` of `total`: [B] int -> [B, total]."""
    return jnp.arange(total)[None] < count[:, None]


def hold_last(x, count):
    """Repeats the last of the first `count` after them: [B, T, ...], [B] int."""
    axes = (1,) * (x.ndim - 2)
    last = jnp.take_along_axis(x, (count - 1).reshape(-1, 1, *axes), axis=1)
    return jnp.where(mask(count, x.shape[1]).reshape(*x.shape[:2], *axes), x, last)


def reflect_pad(audio, left: int, right: int, length=None):
    """Pads by reflection at the first and the last sample.

    Args:
      audio: [B, N].
      left: samples to add before.
      right: samples to add after the last of the N.
      length: [B] int, how many of the N samples are real, or None for all. The
        reflection starts there; the rest of the N is overwritten by it.

    Returns:
      [B, left + N + right], as numpy's `reflect` mode, also where the padding is
      longer than the audio.
    """
    num_samples = audio.shape[-1]
    length = jnp.full(audio.shape[0], num_samples) if length is None else length
    last = jnp.maximum(length - 1, 0)[:, None]
    period = jnp.maximum(2 * last, 1)
    position = jnp.abs(jnp.arange(-left, num_samples + right))[None] % period
    index = jnp.where(position > last, period - position, position)
    return jnp.take_along_axis(audio, jnp.minimum(index, last), axis=-1)


def frame(audio, frame_length: int, hop_length: int):
    """Cuts audio into overlapping frames.

    Shifted slices of hops instead of a gather: the same numbers, much faster.

    Args:
      audio: [B, N].
      frame_length: in samples.
      hop_length: in samples.

    Returns:
      [B, 1 + (N - frame_length) // hop_length, frame_length].
    """
    num_frames = 1 + (audio.shape[-1] - frame_length) // hop_length
    num_slices = -(-frame_length // hop_length)
    needed = (num_frames - 1 + num_slices) * hop_length
    audio = audio[:, :needed]
    audio = jnp.pad(audio, ((0, 0), (0, needed - audio.shape[-1])))
    hops = audio.reshape(audio.shape[0], -1, hop_length)
    slices = [hops[:, k : k + num_frames] for k in range(num_slices)]
    return jnp.concatenate(slices, axis=-1)[..., :frame_length]


def over_blocks(function, audio, frame_length: int, hop_length: int, block: int):
    """Applies a function of frames to `block` frames at a time, to bound memory.

    Args:
      function: [B, T', frame_length] -> array [B, T', ...] for any T'.
      audio: [B, N].
      frame_length: in samples.
      hop_length: in samples.
      block: frames at a time.

    Returns:
      [B, T, ...], what function(frame(audio, frame_length, hop_length)) returns.
    """
    num_frames = 1 + (audio.shape[-1] - frame_length) // hop_length
    if num_frames <= block:
        return function(frame(audio, frame_length, hop_length))
    num_blocks = -(-num_frames // block)
    stride = block * hop_length
    length = stride - hop_length + frame_length
    needed = (num_blocks - 1) * stride + length
    audio = jnp.pad(audio, ((0, 0), (0, max(0, needed - audio.shape[-1]))))
    blocks = jnp.moveaxis(frame(audio, length, stride), 1, 0)
    result = lax.map(lambda x: function(frame(x, frame_length, hop_length)), blocks)
    result = jnp.moveaxis(result, 0, 1)
    return result.reshape(result.shape[0], -1, *result.shape[3:])[:, :num_frames]


def hann(length: int) -> np.ndarray:
    """Periodic Hann window, float32 [length]."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    return window.astype(np.float32)


@functools.cache
def _waves(length: int) -> np.ndarray:
    """[length, 2 (length // 2 + 1)]: a cosine for each frequency, then a sine."""
    turns = np.outer(np.arange(length), np.arange(length // 2 + 1)) % length
    angles = 2 * np.pi * turns / length
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def power_by_fft(frames):
    """Squared magnitudes of spectra: [B, T, F] -> [B, T, F // 2 + 1]."""
    spectrum = jnp.fft.rfft(frames)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def power_by_product(frames):
    """The same by one product in float32, which TPUs compile and compute faster."""
    spectrum = jnp.matmul(frames, _waves(frames.shape[-1]), precision="highest")
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    return jnp.square(real) + jnp.square(imaginary)


def frame_power(frames):
    """Squared magnitudes of Hann-windowed frames: [B, T, F] -> [B, T, F // 2 + 1]."""
    windowed = frames * hann(frames.shape[-1])[None, None]
    return lax.platform_dependent(windowed, tpu=power_by_product, default=power_by_fft)


def power_spectrum(audio, n_fft: int, hop_length: int, length=None):
    """Squared magnitude of the centred, Hann-windowed, unnormalised STFT.

    Args:
      audio: [B, N].
      n_fft: window and transform size in samples.
      hop_length: in samples.
      length: [B] real samples of the N, or None for all.

    Returns:
      [B, 1 + N // hop_length, n_fft // 2 + 1].
    """
    padded = reflect_pad(audio, n_fft // 2, n_fft // 2, length)
    return frame_power(frame(padded, n_fft, hop_length))


def spectrogram(audio, n_fft: int, hop_length: int):
    """Magnitude spectrogram, floored at 1e-3.5 (Parallel WaveGAN's form).

    Args:
      audio: [B, N].
      n_fft: window and transform size in samples.
      hop_length: in samples.

    Returns:
      [B, 1 + N // hop_length, n_fft // 2 + 1].
    """
    return jnp.sqrt(jnp.maximum(power_spectrum(audio, n_fft, hop_length), 1e-7))


# Loudness.


def a_weighting(frequencies_hz) -> np.ndarray:
    """A-weighting in dB, at least -80 (IEC 61672), float64.

    Args:
      frequencies_hz: any shape, in Hz.
    """
    squared = np.square(np.asarray(frequencies_hz, np.float64))
    c1, c2, c3, c4 = np.square([12194.217, 20.598997, 107.65265, 737.86223])
    with np.errstate(divide="ignore"):
        weighting = 2.0 + 20.0 * (
            np.log10(c1)
            + 2.0 * np.log10(squared)
            - np.log10(squared + c1)
            - np.log10(squared + c2)
            - 0.5 * np.log10(squared + c3)
            - 0.5 * np.log10(squared + c4)
        )
    return np.maximum(weighting, -80.0)


def loudness_db(audio, sample_rate: int, hop_length: int, length=None):
    """A-weighted loudness: the mean over bins of the dB spectrum, absolute level.

    Args:
      audio: [B, N], N a multiple of hop_length.
      sample_rate: in Hz.
      hop_length: in samples.
      length: [B] real samples of the N, or None for all.

    Returns:
      [B, N // hop_length] in dB, at least -120.
    """
    weighting = a_weighting(np.fft.rfftfreq(LOUDNESS_FFT, 1 / sample_rate)) - 20.7
    weighting = weighting.astype(np.float32)[None, None]

    def mean_db(frames):
        # 20 log10 max(1e-20, |S|), except that a power below float32's range reads
        # as its smallest, -380 dB: far under the floor either way.
        power_db = 10.0 * jnp.log10(jnp.maximum(frame_power(frames), 1e-38))
        return jnp.mean(jnp.maximum(power_db + weighting, -120.0), axis=-1)

    padded = reflect_pad(audio, LOUDNESS_FFT // 2, LOUDNESS_FFT // 2, length)
    loudness = over_blocks(mean_db, padded, LOUDNESS_FFT, hop_length, LOUDNESS_BLOCK)
    return loudness[:, : audio.shape[-1] // hop_length]


# The front end of Wav2Letter.


@functools.cache
def mel_filterbank(sample_rate: int, n_fft: int, num_mels: int) -> np.ndarray:
    """Slaney's mel filters with unit area, float32 [n_fft // 2 + 1, num_mels]."""

    def to_mel(hz):  # linear below 1 kHz, logarithmic above
        ratio = np.maximum(hz, 1000.0) / 1000.0
        return np.where(
            hz < 1000.0, hz * 3 / 200, 15 + 27 * np.log(ratio) / np.log(6.4)
        )

    def to_hz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    edges = to_hz(np.linspace(0.0, to_mel(np.float64(sample_rate / 2)), num_mels + 2))
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


def mel_filters() -> np.ndarray:
    """The filters of Wav2Letter's front end, [257, 128]."""
    return mel_filterbank(16_000, MFCC_FFT, 128)


def _dct(num_out: int, num_in: int) -> np.ndarray:
    """Orthonormal DCT-II, float32 [num_in, num_out]."""
    k, n = np.arange(num_out), np.arange(num_in)[:, None]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * num_in)) * np.sqrt(2 / num_in)
    basis[:, 0] /= np.sqrt(2)
    return basis.astype(np.float32)


def log_mel(audio, length=None, filters=None):
    """Mel spectrum in dB at 16 kHz, as librosa's defaults give it before its floor.

    Args:
      audio: [B, N] at 16 kHz.
      length: [B] real samples of the N, or None for all.
      filters: [B, 257, 128] each example's own, or None for librosa's.

    Returns:
      [B, 1 + N // 160, 128].
    """
    power = power_spectrum(audio, MFCC_FFT, MFCC_HOP, length)
    mel = power @ (mel_filters() if filters is None else filters)
    return 10.0 * jnp.log10(jnp.maximum(mel, 1e-10))


def log_mel_peak(log_mel, num_frames=None):
    """The loudest value of the real frames: [B, T, 128], [B] or None -> [B]."""
    if num_frames is not None:
        is_real = mask(num_frames, log_mel.shape[1])
        log_mel = jnp.where(is_real[..., None], log_mel, -jnp.inf)
    return jnp.max(log_mel, axis=(1, 2))


def cepstrum(log_mel, peak):
    """13 MFCCs of a mel spectrum floored 80 dB below a peak.

    Args:
      log_mel: [B, T, 128] in dB.
      peak: [B] in dB, of the whole recording.

    Returns:
      [B, T, 13].
    """
    return jnp.maximum(log_mel, peak[:, None, None] - 80.0) @ _dct(NUM_MFCC, 128)


def mfcc(audio, length=None):
    """13 MFCCs at 16 kHz as librosa's defaults give them (method.md, section 7).

    Args:
      audio: [B, N] at 16 kHz.
      length: [B] real samples of the N, or None for all.

    Returns:
      [B, 1 + N // 160, 13]; the loudest real frame sets the 80 dB floor.
    """
    spectrum = log_mel(audio, length)
    num_frames = None if length is None else 1 + length // MFCC_HOP
    return cepstrum(spectrum, log_mel_peak(spectrum, num_frames))


def _polynomial_fit(order: int, deriv: int) -> np.ndarray:
    """Derivative at each point of a least-squares polynomial on DELTA_WIDTH points.

    Returns:
      float32 [DELTA_WIDTH points of evaluation, DELTA_WIDTH samples].
    """
    x = np.arange(DELTA_WIDTH) - DELTA_WIDTH // 2
    fit = np.linalg.pinv(np.vander(x, order + 1, increasing=True))
    rows = []
    for point in x:
        powers = [
            np.prod(np.arange(p - deriv + 1, p + 1)) * float(point) ** (p - deriv)
            if p >= deriv
            else 0.0
            for p in range(order + 1)
        ]
        rows.append(powers @ fit)
    return np.asarray(rows, np.float32)


def _savitzky_golay(x, order: int, deriv: int, num_frames):
    """Derivative of [B, T, C] along time; polynomial fit at both edges."""
    total, half = x.shape[1], DELTA_WIDTH // 2
    weights = _polynomial_fit(order, deriv)
    slices = [x[:, k : k + total - 2 * half] for k in range(DELTA_WIDTH)]
    middle = sum(w * s for w, s in zip(weights[half], slices, strict=True))
    first = jnp.einsum("pw,bwc->bpc", weights[:half], x[:, :DELTA_WIDTH])
    result = jnp.concatenate([first, middle, jnp.zeros_like(first)], axis=1)
    # The last frames: fitted on the last DELTA_WIDTH real ones.
    start = jnp.maximum(num_frames - DELTA_WIDTH, 0)
    window = start[:, None] + jnp.arange(DELTA_WIDTH)[None]
    tail = jnp.take_along_axis(x, window[..., None], axis=1)
    last = jnp.einsum("pw,bwc->bpc", weights[half + 1 :], tail)
    rows = (start + half + 1)[:, None] + jnp.arange(half)[None]
    return jax.vmap(lambda r, i, v: r.at[i].set(v))(result, rows, last)


def deltas(coefficients, num_frames=None):
    """MFCCs with their first and second Savitzky-Golay derivatives, width 9.

    Args:
      coefficients: [B, T, C]; T < 9 is padded with copies of the last frame.
      num_frames: [B] real frames of the T, or None for all.

    Returns:
      [B, T, 3, C]: as they are, delta (order 1), delta-delta (order 2).
    """
    batch, total, _ = coefficients.shape
    num_frames = jnp.full(batch, total) if num_frames is None else num_frames
    extra = max(0, DELTA_WIDTH - total)
    x = coefficients
    if extra:
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)), mode="edge")
    x = hold_last(x, num_frames)
    fitted = jnp.maximum(num_frames, DELTA_WIDTH)
    delta = _savitzky_golay(x, 1, 1, fitted)[:, :total]
    delta2 = _savitzky_golay(x, 2, 2, fitted)[:, :total]
    return jnp.stack([coefficients, delta, delta2], axis=2)


def mfcc_stats(blocks, num_frames=None, per_coefficient: bool = False):
    """What each coefficient is normalised by: a mean and a deviation.

    Args:
      blocks: [B, T, 3, C] from `deltas`.
      num_frames: [B] real frames of the T, or None for all.
      per_coefficient: its own ones, which takes away what does not change over a
        recording: the microphone and much of the voice (Atal 1974); else its block's,
        as the published Wav2Letter wants it.

    Returns:
      [B, 3, C, 2].
    """
    weight = jnp.ones(blocks.shape[:2])
    if num_frames is not None:
        weight = mask(num_frames, blocks.shape[1]) * weight
    weight = (weight / weight.sum(axis=1, keepdims=True))[..., None, None]
    mean = jnp.sum(blocks * weight, axis=1)
    variance = jnp.sum(jnp.square(blocks - mean[:, None]) * weight, axis=1)
    stats = jnp.stack([mean, jnp.sqrt(variance)], axis=-1)
    return stats if per_coefficient else block_stats(stats)


def block_stats(stats):
    """Of the coefficients' own means and deviations their block's: [..., 3, C, 2]."""
    mean, deviation = stats[..., 0], stats[..., 1]
    of_block = mean.mean(axis=-1, keepdims=True)
    square = jnp.square(deviation) + jnp.square(mean - of_block)
    pair = of_block, jnp.sqrt(square.mean(axis=-1, keepdims=True))
    return jnp.broadcast_to(jnp.stack(pair, axis=-1), stats.shape)


def normalise_mfcc(blocks, stats):
    """Normalises and joins the blocks: [B, T, 3, C], [B, 3, C, 2] -> [B, T, 3 C].

    What moves by less than rounding does is not made louder.
    """
    mean, deviation = stats[:, None, ..., 0], stats[:, None, ..., 1]
    normalised = (blocks - mean) / jnp.maximum(deviation, LEAST_DEVIATION)
    return normalised.reshape(*blocks.shape[:2], -1)
