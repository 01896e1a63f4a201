"""The sine, its phase and the noise, against float64."""

import functools
from fractions import Fraction

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_jax import excitation

SAMPLE_RATE = 16_000
HOP = 64


@functools.cache
def compiled(function, **static):
    """The jitted function, with arguments that are sizes and rates bound."""
    return jax.jit(functools.partial(function, **static))


# Sine excitation.


@pytest.mark.parametrize(
    ("f0_hz", "hop_length", "expected"),
    [
        # A rise, a glide, a fall, silence, a rise, and a held end.
        (
            [0, 100, 200, 0, 0, 300],
            4,
            [0, 0, 100, 100, 100, 125, 150, 175, 200, 200, 0, 0]
            + [0, 0, 0, 0, 0, 0, 300, 300, 300, 300, 300, 300],
        ),
        # Of an odd hop, the middle sample is nearer to the left frame.
        (
            [0, 100, 200, 0],
            5,
            [0, 0, 0, 100, 100, 100, 120, 140, 160, 180, 200, 200, 200, 0, 0]
            + [0, 0, 0, 0, 0],
        ),
        ([440], 3, [440, 440, 440]),
        # One unvoiced frame parts two tones; one voiced frame lasts half a hop each way.
        ([100, 0, 200, 0], 2, [100, 0, 0, 200, 200, 0, 0, 0]),
    ],
)
def test_f0_at_the_sample_rate_never_crosses_an_edge(f0_hz, hop_length, expected):
    result = compiled(excitation.sample_f0, hop_length=hop_length)(np.float32([f0_hz]))
    np.testing.assert_allclose(result, [expected], rtol=1e-6)


def test_f0_on_crepes_grid_moves_to_ours_by_hand():
    # At 0, 64, ..., 832 samples, of frames at 0, 160, 320, 480, 640.
    f0_hz = np.float32([[100, 260, 0, 0, 320]])
    expected = [100, 164, 228, 260, 0, 0, 0, 0, 0, 320, 320, 320, 320, 320]
    result = compiled(excitation.interpolate_f0, hop_in=160, hop_out=64, num_out=14)(
        f0_hz
    )
    np.testing.assert_allclose(result, [expected], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    f0_hz=st.lists(
        st.just(0.0) | st.floats(32, 2000, width=32), min_size=12, max_size=12
    )
)
def test_interpolated_f0_stays_between_its_voiced_neighbours(f0_hz):
    move = compiled(excitation.interpolate_f0, hop_in=160, hop_out=64, num_out=30)
    result = np.asarray(move(np.float32([f0_hz])))[0]
    for index, value in enumerate(result):
        position = index * 64 / 160
        left, right = (f0_hz[min(int(position) + k, 11)] for k in (0, 1))
        nearest = f0_hz[min(int(position + 0.5), 11)]
        assert (value > 0) == (nearest > 0)
        assert not value or value == pytest.approx(nearest) or left * right > 0
        low, high = sorted((left, right)) if left * right else (nearest, nearest)
        assert low * (1 - 1e-6) <= value <= high * (1 + 1e-6)


def excite(f0_hz, normal=None, turns=0.0, hop_length=HOP, num_harmonics=0):
    """`sine_excitation` of one f0_hz [T], by default without noise: [N, 1 + H]."""
    function = compiled(
        excitation.sine_excitation,
        sample_rate=SAMPLE_RATE,
        hop_length=hop_length,
        num_harmonics=num_harmonics,
    )
    f0_hz = np.float32(f0_hz)
    normal = np.zeros(f0_hz.size * hop_length) if normal is None else normal
    result = function(f0_hz[None], np.float32(normal)[None], np.float32([turns]))
    return np.asarray(result[0], np.float64)


@pytest.mark.parametrize("hz", [32, 55.5, 440, 1318.51, 2000])
@pytest.mark.parametrize("turns", [0, 0.25, -0.4])
def test_a_held_note_is_a_pure_sine_of_amplitude_a_tenth(hz, turns):
    result = excite(np.full(250, hz), turns=turns)[:, 0]
    cycles = float(np.float32(hz)) * np.arange(1, 16_001) / SAMPLE_RATE
    expected = 0.1 * np.sin(2 * np.pi * (cycles + float(np.float32(turns))))
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("hop_length", [64, 80, 25])
def test_a_gliding_voice_keeps_the_phase_of_its_running_sum(hop_length):
    f0_hz = np.float32(300 + 200 * np.sin(np.arange(200) / 9))
    f0_hz[50:70], f0_hz[120:121], f0_hz[150:152] = 0, 0, [0, 500]
    # The rule of the edges again, sample by sample.
    samples = []
    for index in range(f0_hz.size * hop_length):
        frame, step = divmod(index, hop_length)
        left, right = (float(f0_hz[min(frame + k, f0_hz.size - 1)]) for k in (0, 1))
        share = step / hop_length
        nearest = left if share < 0.5 else right
        samples.append(left + (right - left) * share if left * right else nearest)
    samples = np.array(samples)
    expected = 0.1 * np.sin(2 * np.pi * np.cumsum(samples) / SAMPLE_RATE)
    result = excite(f0_hz, hop_length=hop_length)[:, 0]
    np.testing.assert_allclose(result, expected * (samples > 0), rtol=0, atol=3e-6)


@pytest.mark.parametrize("hop_length", [64, 80, 160])
@pytest.mark.parametrize("voice", ["440 Hz", "441.7 Hz", "1999.9 Hz", "vibrato"])
def test_the_phase_does_not_drift_in_an_hour(voice, hop_length):
    num_frames = 3600 * SAMPLE_RATE // hop_length
    if voice == "vibrato":
        radians = 2 * np.pi * 5 * np.arange(num_frames) * hop_length / SAMPLE_RATE
        f0_hz = np.float32(440 + 20 * np.sin(radians))
    else:
        f0_hz = np.full(num_frames, voice.removesuffix(" Hz"), np.float32)
    heard = np.array([0, num_frames // 4, num_frames // 2, num_frames - 2])

    @jax.jit
    def turns(f0_hz):  # of the samples of the frames that are looked at
        phase = excitation.excitation_phase(
            f0_hz, sample_rate=SAMPLE_RATE, hop_length=hop_length
        )
        return phase.reshape(-1, hop_length)[heard]

    left, right = f0_hz.astype(np.float64), np.append(f0_hz[1:], f0_hz[-1])
    step = np.arange(hop_length) / hop_length
    advance = left * hop_length + (right - left) * step.sum()
    before = np.cumsum(advance) - advance
    inside = left[heard, None] + (right - left)[heard, None] * step
    exact = (before[heard, None] + np.cumsum(inside, axis=1)) / SAMPLE_RATE
    if voice == "440 Hz":  # the float64 sum is the exact one
        last = Fraction(440 * (int(heard[-1]) + 1) * hop_length, SAMPLE_RATE)
        assert abs(exact[-1, -1] - last) < 1e-7
    drift = np.angle(np.exp(2j * np.pi * (np.float64(turns(f0_hz[None])) - exact)))
    assert np.abs(drift).max() < 1e-2


def test_a_sine_is_taken_up_again_at_any_frame():
    f0_hz = np.float32(300 + 200 * np.sin(np.arange(300) / 9))
    f0_hz[100:130] = 0
    phase = compiled(excitation.frame_phase, sample_rate=SAMPLE_RATE, hop_length=HOP)
    turns = np.asarray(phase(f0_hz[None]))[0]
    whole = excite(f0_hz, num_harmonics=2)
    for first in (0, 60, 110, 200):
        part = excite(f0_hz[first:][:100], turns=turns[first], num_harmonics=2)
        # The last frame of a part is held; in the whole it leads to the next.
        expected = whole[first * HOP :][: 99 * HOP]
        np.testing.assert_allclose(part[: 99 * HOP], expected, rtol=0, atol=2e-6)


def test_noise_is_faint_in_the_voiced_and_loud_in_the_unvoiced():
    f0_hz = np.repeat(np.float32([220, 0]), 100)
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(200 * HOP).astype(np.float32)
    added = excite(f0_hz, normal) - excite(f0_hz)
    voiced, unvoiced = added[: 99 * HOP, 0], added[100 * HOP :, 0]
    np.testing.assert_allclose(voiced, 0.003 * normal[: 99 * HOP], atol=2e-8)
    loud = 0.1 / (3 * 0.003) * (0.003 * normal[100 * HOP :])
    np.testing.assert_allclose(unvoiced, loud, rtol=1e-5)
    np.testing.assert_array_equal(excite(f0_hz)[100 * HOP :], 0)


def test_harmonics_are_multiples_and_silent_above_the_nyquist_frequency():
    result = excite(np.full(250, 1500.0), turns=0.1, num_harmonics=7)
    spectrum = np.abs(np.fft.rfft(result, axis=0)) / 8000
    expected = np.zeros_like(spectrum)  # bins of 1 Hz
    for harmonic in range(1, 6):
        expected[1500 * harmonic, harmonic - 1] = 0.1
    assert result.shape == (16_000, 8)
    np.testing.assert_allclose(spectrum, expected, atol=1e-5)


# Noise.


@functools.cache
def five_blocks():
    uniform, normal = excitation.block_noise(jax.random.key(7), 5 * 16_000)
    return np.asarray(uniform), np.asarray(normal)


@pytest.mark.parametrize(
    ("first_block", "num_samples"), [(0, 100), (0, 16_001), (2, 20_000), (4, 16_000)]
)
def test_a_chunk_of_noise_is_a_part_of_the_whole(first_block, num_samples):
    chunk = excitation.block_noise(jax.random.key(7), num_samples, first_block)
    start = first_block * 16_000
    for part, whole in zip(chunk, five_blocks(), strict=True):
        np.testing.assert_array_equal(part, whole[start : start + num_samples])


def test_noise_is_uniform_and_normal_and_never_repeats():
    uniform, normal = five_blocks()
    assert 0 <= uniform.min() and uniform.max() < 1
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3
    other = excitation.block_noise(jax.random.key(8), 16_000)
    rows = np.concatenate([np.reshape((uniform, normal), (10, -1)), other])
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 0.04  # five deviations of 1 / sqrt(16000)
