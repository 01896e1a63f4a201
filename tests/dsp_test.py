"""Signal processing against float64 references written from method.md."""

import functools

import jax
import numpy as np
import pytest
import scipy.fft
import scipy.signal
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_jax import dsp

SAMPLE_RATE = 16_000
HOP = 64


@functools.cache
def compiled(function, **static):
    """The jitted function, with arguments that are sizes and rates bound."""
    return jax.jit(functools.partial(function, **static))


def noise(num_samples, level=0.1, seed=0):
    """White noise, float32 [num_samples]."""
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(num_samples)).astype(np.float32)


def tone(hz, num_samples, amplitude=0.5):
    """A cosine, float32 [num_samples]."""
    turns = hz * np.arange(num_samples) / SAMPLE_RATE
    return (amplitude * np.cos(2 * np.pi * turns)).astype(np.float32)


def singing(num_samples, seed=0):
    """Harmonics under a slow envelope, with some noise."""
    seconds = np.arange(num_samples) / SAMPLE_RATE
    voice = sum(tone(220 * k, num_samples, 0.3 / k) for k in range(1, 12))
    envelope = np.sin(3 * seconds + 0.3) ** 2
    return (voice * envelope).astype(np.float32) + noise(num_samples, 1e-3, seed)


def float64_stft(audio, n_fft, hop_length):
    """Centred STFT of [N] by SciPy, unnormalised, periodic Hann: [T, F]."""
    half = n_fft // 2
    padded = np.pad(audio.astype(np.float64), half, mode="reflect")
    _, _, spectrum = scipy.signal.stft(
        padded,
        window="hann",
        nperseg=n_fft,
        noverlap=n_fft - hop_length,
        boundary=None,
        padded=False,
    )
    return spectrum.T * half  # SciPy divides by the window's sum, n_fft / 2


def with_garbage(rows, total, garbage=np.nan):
    """Rows of different lengths as one [B, total], with garbage after their ends."""
    padded = np.full((len(rows), total, *rows[0].shape[1:]), garbage, np.float32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, np.array([len(row) for row in rows])


# Framing.


@pytest.mark.parametrize(
    ("num_samples", "left", "right"),
    [(1, 7, 99), (2, 3, 5), (3, 100, 0), (10, 9, 9), (10, 10, 4), (257, 0, 700)],
)
def test_reflect_pad_is_numpys_also_for_audio_shorter_than_the_padding(
    num_samples, left, right
):
    audio = np.stack([noise(num_samples, seed=seed) for seed in range(2)])
    expected = np.pad(audio, ((0, 0), (left, right)), mode="reflect")
    padded = compiled(dsp.reflect_pad, left=left, right=right)(audio)
    np.testing.assert_array_equal(padded, expected)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=3))
def test_reflect_pad_starts_where_a_padded_recording_ends(lengths):
    rows = [noise(n, seed=n) for n in lengths]
    audio, length = with_garbage(rows, 40)
    expected = [np.pad(row, (9, 31 + 40 - row.size), mode="reflect") for row in rows]
    padded = compiled(dsp.reflect_pad, left=9, right=31)(audio, length=length)
    np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize(
    ("num_samples", "frame_length", "hop_length"),
    [(100, 8, 4), (100, 10, 4), (103, 7, 3), (50, 4, 10), (8, 8, 3), (101, 32, 1)],
)
def test_frame_is_a_sliding_window(num_samples, frame_length, hop_length):
    audio = np.stack([noise(num_samples, seed=seed) for seed in range(2)])
    starts = range(0, num_samples - frame_length + 1, hop_length)
    expected = np.stack([audio[:, s : s + frame_length] for s in starts], axis=1)
    cut = compiled(dsp.frame, frame_length=frame_length, hop_length=hop_length)
    np.testing.assert_array_equal(cut(audio), expected)


@pytest.mark.parametrize(
    ("block", "extra"), [(1, 0), (5, 0), (5, 3), (22, 1), (23, 0), (24, 3)]
)
def test_over_blocks_is_the_function_of_all_frames(block, extra):
    audio = np.stack([noise(10 + 22 * 4 + extra, seed=seed) for seed in range(2)])
    starts = range(0, 22 * 4 + 1, 4)  # of 23 frames
    expected = np.stack([audio[:, s : s + 10] for s in starts], axis=1) * 2

    def function(frames):
        assert frames.shape[1] <= block or block >= 23  # all that is held at once
        return frames * 2

    result = jax.jit(lambda x: dsp.over_blocks(function, x, 10, 4, block))(audio)
    np.testing.assert_array_equal(result, expected)


# Spectra and loudness.


@pytest.mark.parametrize(("n_fft", "hop_length"), [(64, 16), (512, 160), (2048, 64)])
def test_spectrogram_is_the_floored_magnitude_of_the_centred_stft(n_fft, hop_length):
    audio = np.stack([singing(5000), noise(5000, 1e-6)])
    expected = [np.abs(float64_stft(row, n_fft, hop_length)) for row in audio]
    result = compiled(dsp.spectrogram, n_fft=n_fft, hop_length=hop_length)(audio)
    np.testing.assert_allclose(
        result, np.maximum(expected, np.sqrt(1e-7)), rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("power", [dsp.power_by_fft, dsp.power_by_product])
@pytest.mark.parametrize("size", [64, 512, 2048])
def test_power_of_frames_is_that_in_float64_and_so_is_its_slope(power, size):
    frames = dsp.hann(size) * np.stack([singing(size), noise(size, 1e-3)])[:, None]
    spectrum = np.fft.rfft(frames.astype(np.float64))
    expected, waves = np.abs(spectrum) ** 2, np.fft.rfft(np.eye(size))
    result, slope = jax.vjp(power, frames)
    loudest = expected.max(axis=-1, keepdims=True)
    assert (np.abs(result - expected) < 1e-6 * loudest).all()
    weights = np.random.default_rng(0).uniform(size=expected.shape).astype(np.float32)
    [result] = slope(weights)
    expected = 2 * np.real((weights * np.conj(spectrum)) @ waves.T)
    assert np.abs(result - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("hz", "published_db"),  # IEC 61672-1, table 3
    [(31.5, -39.4), (63, -26.2), (125, -16.1), (250, -8.6), (500, -3.2), (1000, 0.0)]
    + [(2000, 1.2), (4000, 1.0), (8000, -1.1), (16_000, -6.6)],
)
def test_a_weighting_is_the_standards(hz, published_db):
    # The standard states exact frequencies: powers of ten, named by rounded ones.
    exact_hz = 1000 * 10 ** (round(10 * np.log10(hz / 1000)) / 10)
    assert dsp.a_weighting(exact_hz) == pytest.approx(published_db, abs=0.051)


def test_a_weighting_has_a_floor():
    np.testing.assert_array_equal(dsp.a_weighting([0.0, 0.1]), [-80.0, -80.0])


def float64_loudness(audio, hop_length):
    """method.md, section 1, "Exact loudness": [N] -> [N // hop_length]."""
    with np.errstate(divide="ignore"):
        power_db = 20 * np.log10(
            np.maximum(1e-20, np.abs(float64_stft(audio, 2048, hop_length)))
        )
        f2 = np.linspace(0, SAMPLE_RATE / 2, 1025) ** 2
        c = np.array([12194.217, 20.598997, 107.65265, 737.86223]) ** 2
        weighting = 2.0 + 20 * (
            np.log10(c[0] * f2**2)
            - np.log10((f2 + c[0]) * (f2 + c[1]))
            - np.log10((f2 + c[2]) * (f2 + c[3])) / 2
        )
    level = np.maximum(power_db + np.maximum(weighting, -80) - 20.7, -120)
    return level.mean(axis=1)[: audio.size // hop_length]


loudness_db = compiled(dsp.loudness_db, sample_rate=SAMPLE_RATE, hop_length=HOP)


FLOOR = 10 ** (-90 / 20)  # noise of -90 dBFS


@pytest.mark.parametrize(
    ("audio", "tolerance_db"),
    [
        (singing(9600), 0.01),
        (noise(9600, 0.3), 0.01),
        (noise(9600, FLOOR), 0.01),
        (tone(440, 9600, 1.0) + noise(9600, FLOOR), 0.01),
        (tone(3000, 9600, 0.01) + noise(9600, FLOOR), 0.01),
        (np.clip(3 * singing(9600), -1, 1), 0.01),
        (tone(440, 9600, 1.0), 0.1),
        (tone(2000, 9600, 0.9), 0.1),
        (tone(61.7, 9600, 0.01), 0.1),
        (np.full(9600, 0.5, np.float32), 0.1),
        (np.repeat(np.float32([0, 0.1, 0]), 3200) * singing(9600), 0.1),
        (noise(9600, 1e-7), 0.1),
    ],
    ids=[
        *("singing", "noise", "faint noise", "full-scale tone over a noise floor"),
        *("faint tone over a noise floor", "clipped", "full-scale tone", "loud tone"),
        *("faint low tone", "direct current", "silence around singing", "near floor"),
    ],
)
def test_loudness_in_float32_is_that_in_float64(audio, tolerance_db):
    result = loudness_db(audio[None])[0]
    assert result.shape == (150,)
    expected = float64_loudness(audio, HOP)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance_db)


def test_loudness_of_silence_is_its_floor():
    silence = np.zeros((1, 640), np.float32)
    np.testing.assert_array_equal(loudness_db(silence), -120.0)


def test_loudness_follows_gain_decibel_for_decibel():
    audio = noise(4800, 1.0)[None]  # every bin far above the floor
    before, after = (loudness_db(g * audio) for g in (1, 4))
    np.testing.assert_allclose(after - before, 20 * np.log10(4), atol=1e-4)


def test_loudness_is_the_same_across_the_blocks_it_is_computed_in():
    hop_length = 8
    audio = singing(hop_length * (dsp.LOUDNESS_BLOCK + 30))
    result = compiled(dsp.loudness_db, sample_rate=SAMPLE_RATE, hop_length=hop_length)(
        audio[None]
    )
    expected = float64_loudness(audio, hop_length)
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=0.01)


# The front end of Wav2Letter.


def float64_mel_filters():
    """librosa.filters.mel(sr=16000, n_fft=512, n_mels=128): Slaney's, [128, 257]."""

    def hz(mel):
        knee = 1000 / (200 / 3)
        return (
            1000 * np.exp(np.log(6.4) / 27 * (mel - knee))
            if mel > knee
            else (200 / 3 * mel)
        )

    top = 15 + np.log(8000 / 1000) / (np.log(6.4) / 27)
    corners = [hz(mel) for mel in np.linspace(0, top, 130)]
    filters = np.zeros((128, 257))
    for row, (low, peak, high) in enumerate(
        zip(corners, corners[1:], corners[2:], strict=False)
    ):
        triangle = np.interp(np.arange(257) * 31.25, [low, peak, high], [0, 1, 0])
        filters[row] = triangle * 2 / (high - low)
    return filters


def float64_mfcc(audio):
    """librosa.feature.mfcc(n_mfcc=13, n_fft=512, hop_length=160): [N] -> [T, 13]."""
    power = np.abs(float64_stft(audio, 512, 160)) ** 2
    mel_db = 10 * np.log10(np.maximum(1e-10, power @ float64_mel_filters().T))
    mel_db = np.maximum(mel_db, mel_db.max() - 80)
    return scipy.fft.dct(mel_db, type=2, norm="ortho")[:, :13]


def float64_deltas(coefficients):
    """librosa.feature.delta of order 1 and 2: [T, 13] -> [T, 3, 13]."""
    num_frames = len(coefficients)
    shortage = max(0, 9 - num_frames)
    padded = np.pad(coefficients, ((0, shortage), (0, 0)), mode="edge")
    derivatives = [
        scipy.signal.savgol_filter(padded, 9, order, deriv=order, axis=0, mode="interp")
        for order in (1, 2)
    ]
    blocks = [padded, *derivatives]
    return np.stack([block[:num_frames] for block in blocks], axis=1)


def test_mel_filters_are_slaneys():
    filters = dsp.mel_filterbank(SAMPLE_RATE, 512, 128)
    np.testing.assert_allclose(filters, float64_mel_filters().T, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "audio",
    [
        singing(8000),
        tone(440, 8000),
        noise(8000, 1e-6),
        np.zeros(8000, np.float32),
        # The 80 dB below the loudest frame matter.
        noise(8000, 1.0) * np.repeat(np.float32([1, 1e-6]), 4000),
        singing(160),
        singing(1),
    ],
    ids=["singing", "tone", "faint", "silence", "loud and faint", "short", "sample"],
)
def test_mfccs_are_librosas(audio):
    result = compiled(dsp.mfcc)(audio[None])[0]
    assert result.shape == (1 + audio.size // 160, 13)
    np.testing.assert_allclose(result, float64_mfcc(audio), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("num_frames", [1, 8, 9, 10, 60])
def test_deltas_are_savitzky_and_golays(num_frames):
    coefficients = noise(num_frames * 13, 20.0).reshape(num_frames, 13)
    result = compiled(dsp.deltas)(coefficients[None])[0]
    np.testing.assert_allclose(result, float64_deltas(coefficients), atol=1e-4)


@pytest.mark.parametrize(("per_coefficient", "axes"), [(False, (1, 3)), (True, (1,))])
def test_mfccs_are_normalised_by_the_mean_and_deviation(per_coefficient, axes):
    blocks = noise(2 * 40 * 3 * 13, 5.0).reshape(2, 40, 3, 13)
    blocks += np.float32([-300, 7, 0]).reshape(1, 1, 3, 1)
    stats = jax.jit(dsp.mfcc_stats, static_argnums=2)(blocks, None, per_coefficient)
    exact = blocks.astype(np.float64)
    mean, deviation = exact.mean(axes, keepdims=True), exact.std(axes, keepdims=True)
    expected = np.stack(np.broadcast_arrays(mean, deviation, exact)[:2], axis=-1)[:, 0]
    assert stats.shape == (2, 3, 13, 2)
    np.testing.assert_allclose(stats, expected, rtol=1e-5, atol=1e-5)
    normalised = (blocks - mean) / deviation
    result = dsp.normalise_mfcc(blocks, stats)
    assert result.shape == (2, 40, 39)
    np.testing.assert_allclose(result, normalised.reshape(2, 40, 39), atol=1e-4)


def test_what_moves_by_rounding_alone_is_not_made_louder():
    blocks = 1e-4 * noise(40 * 3 * 13, 1.0).reshape(1, 40, 3, 13) - 300
    stats = dsp.mfcc_stats(blocks, None, True)
    assert np.abs(dsp.normalise_mfcc(blocks, stats)).max() < 0.1


def test_gain_moves_the_first_mfcc_alone_when_the_statistics_stay():
    audio = singing(8000)[None]
    mfcc, deltas = compiled(dsp.mfcc), compiled(dsp.deltas)
    stats = compiled(dsp.mfcc_stats)(deltas(mfcc(audio)))
    before, after = (
        np.asarray(dsp.normalise_mfcc(deltas(mfcc(g * audio)), stats)) for g in (1, 0.5)
    )
    expected = np.zeros_like(before)
    expected[..., 0] = 20 * np.log10(0.5) * np.sqrt(128) / stats[0, 0, 0, 1]
    np.testing.assert_allclose(after - before, expected, atol=1e-4)


def test_a_block_without_deviation_is_normalised_to_zero():
    blocks = np.zeros((1, 20, 3, 13), np.float32)
    result = dsp.normalise_mfcc(blocks, dsp.mfcc_stats(blocks))
    np.testing.assert_array_equal(result, np.zeros((1, 20, 39)))


# Recordings of different lengths in one batch.


def assert_alone_as_in_batch(function, rows, grid, count, tolerance):
    """Holds function(garbage-padded batch, lengths) against each row alone.

    Garbage of two kinds must give the same bits; alone, another shape is compiled.
    """
    total = max(map(len, rows)) + 3 * grid
    batches = [with_garbage(rows, total, g) for g in (0.0, 1e3)]
    silent, loud = (np.asarray(function(*batch)) for batch in batches)
    for index, row in enumerate(rows):
        real = count(len(row))
        np.testing.assert_array_equal(silent[index, :real], loud[index, :real])
        alone = np.asarray(function(row[None], None))[0]
        assert len(alone) == real
        np.testing.assert_allclose(silent[index, :real], alone, **tolerance)


def test_the_loudness_of_a_padded_recording_is_that_of_itself():
    assert_alone_as_in_batch(
        lambda audio, length: loudness_db(audio, length=length),
        [singing(n) for n in (320, 640, 3200, 4800)],
        320,
        lambda n: n // HOP,
        {"rtol": 0, "atol": 1e-4},
    )


def test_the_mfccs_of_a_padded_recording_are_those_of_itself():
    # The loud one must not lift the floor of the others, nor the garbage any, nor a
    # reflected click, which is two samples nearer to a frame than the real one.
    rows = [singing(n) for n in (320, 640, 4800)]
    rows.append(noise(3200, 1.0) * np.repeat(np.float32([1, 1e-7]), 1600))
    rows.append(noise(640, 1e-7) + np.float32(np.arange(640) == 400))
    assert_alone_as_in_batch(
        compiled(dsp.mfcc),
        rows,
        320,
        lambda n: 1 + n // 160,
        {"rtol": 0, "atol": 1e-3},
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=4, max_size=4))
def test_the_deltas_of_a_padded_recording_are_those_of_itself(counts):
    rows = [noise(n * 13, 20.0, seed=n).reshape(n, 13) for n in counts]
    mfcc, num_frames = with_garbage(rows, 40, 1e3)
    blocks = compiled(dsp.deltas)(mfcc, num_frames=num_frames)
    stats = jax.jit(dsp.mfcc_stats, static_argnums=2)(blocks, num_frames, True)
    for row, of_row, its_stats in zip(
        rows, np.asarray(blocks), np.asarray(stats), strict=True
    ):
        expected = float64_deltas(row)
        np.testing.assert_allclose(of_row[: len(row)], expected, atol=1e-4)
        moments = np.stack([expected.mean(axis=0), expected.std(axis=0)], axis=-1)
        np.testing.assert_allclose(its_stats, moments, rtol=1e-4, atol=2e-4)
