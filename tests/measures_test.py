"""Measures of known perturbations."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from svc_jax import measures


def contour(num_frames: int = 1000, seed: int = 0) -> np.ndarray:
    """f0 in Hz with about a third of the frames unvoiced."""
    rng = np.random.default_rng(seed)
    f0_hz = 200 * 2 ** rng.uniform(-1, 1, num_frames)
    return np.where(rng.uniform(size=num_frames) < 0.35, 0, f0_hz).astype(np.float32)


def test_an_f0_that_is_as_wanted_has_no_error():
    errors = measures.f0_measures(contour(), contour())
    assert errors.pop("f0_correlation") == pytest.approx(1)
    assert errors == dict.fromkeys(
        ("vde", "ffe", "gpe", "f0_cents", "f0_rmse_cents"), 0.0
    )


@pytest.mark.parametrize(("semitones", "ffe"), [(1, 0), (-1, 0), (3, 0), (4, 1)])
def test_a_shift_is_measured_in_cents(semitones, ffe):
    wanted = contour()
    errors = measures.f0_measures(wanted * 2 ** (semitones / 12), wanted)
    assert errors["vde"] == 0
    assert errors["f0_cents"] == pytest.approx(abs(semitones) * 100, abs=0.01)
    assert errors["f0_rmse_cents"] == pytest.approx(abs(semitones) * 100, abs=0.01)
    assert errors["f0_correlation"] == pytest.approx(1)
    assert errors["gpe"] == ffe
    assert errors["ffe"] == pytest.approx(ffe * np.mean(wanted > 0))


def test_voicing_errors_are_counted_both_ways():
    wanted = contour()
    found = wanted.copy()
    unvoiced, voiced = np.flatnonzero(wanted == 0), np.flatnonzero(wanted > 0)
    found[unvoiced[:60]] = 150.0
    found[voiced[:40]] = 0.0
    errors = measures.f0_measures(found, wanted)
    assert (errors["vde"], errors["ffe"], errors["gpe"]) == (0.1, 0.1, 0.0)
    assert errors["f0_cents"] == errors["f0_rmse_cents"] == 0.0


@pytest.mark.parametrize(
    ("ratio", "is_off"),
    [(1.25, True), (0.75, True), (1.19, False), (0.81, False), (2.0, True)],
)
def test_frames_more_than_a_fifth_off_are_errors(ratio, is_off):
    wanted = np.full(200, 220.0)
    found = wanted.copy()
    found[:30] *= ratio
    found[30:50] = 0.0
    errors = measures.f0_measures(found, wanted)
    assert errors["vde"] == 0.1
    assert errors["ffe"] == (0.25 if is_off else 0.1)
    assert errors["gpe"] == (pytest.approx(30 / 180) if is_off else 0)
    assert errors["f0_cents"] == 0.0  # a median
    rmse = 1200 * abs(np.log2(ratio)) * np.sqrt(30 / 180)
    assert errors["f0_rmse_cents"] == pytest.approx(rmse)
    assert np.isnan(errors["f0_correlation"])  # the wanted one never moves


def test_f0_correlation_is_that_of_the_pitch_in_cents():
    wanted = contour()
    drift = 2 ** np.random.default_rng(1).normal(0, 0.3, wanted.size)
    voiced = wanted > 0
    expected = scipy.stats.pearsonr(
        np.log2(wanted[voiced]), np.log2((wanted * drift)[voiced])
    ).statistic
    errors = measures.f0_measures(wanted * drift, wanted)
    assert 0.5 < expected < 0.95
    assert errors["f0_correlation"] == pytest.approx(expected)
    mirrored = np.where(voiced, 200**2 / np.maximum(wanted, 1), 0)
    assert measures.f0_measures(mirrored, wanted)["f0_correlation"] == pytest.approx(-1)


def test_f0_error_is_unknown_where_nothing_is_voiced_together():
    errors = measures.f0_measures([100.0, 0.0], [0.0, 100.0])
    assert (errors["vde"], errors["ffe"]) == (1.0, 1.0)
    for name in ("gpe", "f0_cents", "f0_rmse_cents", "f0_correlation"):
        assert np.isnan(errors[name])


frames_hz = st.lists(
    st.tuples(*[st.one_of(st.just(0.0), st.floats(50, 1000))] * 2), min_size=1
)


@given(frames_hz)
def test_f0_measures_are_their_definitions(pairs):
    found, wanted = zip(*pairs, strict=True)
    differs = [(f > 0) != (w > 0) for f, w in pairs]
    off = [f > 0 and w > 0 and abs(f / w - 1) > 0.2 for f, w in pairs]
    errors = measures.f0_measures(found, wanted)
    assert errors["vde"] == pytest.approx(sum(differs) / len(pairs))
    either = [d or o for d, o in zip(differs, off, strict=True)]
    assert errors["ffe"] == pytest.approx(sum(either) / len(pairs))
    both = [f > 0 and w > 0 for f, w in pairs]
    if any(both):
        assert errors["gpe"] == pytest.approx(sum(off) / sum(both))


def noise(num_samples: int = 6000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.2, num_samples).astype(np.float32)


def float64_distance(found, wanted) -> float:
    """L_recon of method.md, section 3, by SciPy's STFT."""
    total = 0.0
    for n_fft in (2048, 1024, 512, 256, 128, 64):
        window = scipy.signal.get_window("hann", n_fft)
        magnitudes = []
        for audio in (found, wanted):
            padded = np.pad(audio.astype(np.float64), n_fft // 2, mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)
            spectrum = np.fft.rfft(frames[:: n_fft // 4] * window)
            magnitudes.append(np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-7)))
        found_s, wanted_s = magnitudes
        total += np.linalg.norm(wanted_s - found_s) / np.linalg.norm(wanted_s)
        total += np.abs(np.log(wanted_s) - np.log(found_s)).mean()
    return total / 6


def test_spectral_distance_is_zero_at_equality():
    assert measures.spectral_distance(noise(), noise()) == 0


def test_spectral_distance_is_that_of_the_objective():
    found, wanted = noise(seed=1), 3 * noise(seed=2)
    distance = measures.spectral_distance(found, wanted)
    assert distance == pytest.approx(float64_distance(found, wanted), rel=1e-4)
    # Not symmetric: the wanted spectrum is the measure.
    assert distance != pytest.approx(float64_distance(wanted, found), rel=0.1)


def audio_noise(num_samples=16_000, seed=0):
    return np.float32(0.1 * np.random.default_rng(seed).standard_normal(num_samples))


def test_mel_cepstral_distortion_is_the_distance_in_db():
    """A filter that ripples by a cosine over the mel bands, of 6 dB to either side."""
    audio = audio_noise()
    hz = np.linspace(0, 8000, 4001)
    # Slaney's scale, in which the ripple is a cosine of the band's number.
    octaves = np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    mel = np.where(hz < 1000, hz * 3 / 200, 15 + 27 * octaves)
    top = 15 + 27 * np.log(8) / np.log(6.4)
    band = mel / top * 81 - 1
    ripple_db = 6 * np.cos(np.pi * 3 * (band + 0.5) / 80)
    spectrum = np.fft.rfft(audio)
    frequencies = np.fft.rfftfreq(audio.size, 1 / 16_000)
    gain = 10 ** (np.interp(frequencies, hz, ripple_db) / 20)
    filtered = np.fft.irfft(spectrum * gain)
    found = measures.mel_cepstral_distortion(filtered, audio, 16_000)
    assert found == pytest.approx(6 / np.sqrt(2), rel=0.05)


def test_mel_cepstral_distortion_is_blind_to_gain_alone():
    audio = audio_noise()
    assert measures.mel_cepstral_distortion(audio, audio, 16_000) == 0
    assert measures.mel_cepstral_distortion(3 * audio, audio, 16_000) < 1e-3
    other = audio_noise(seed=1)
    assert measures.mel_cepstral_distortion(other, audio, 16_000) > 1


def test_correlation_is_scipys():
    x, y = np.random.default_rng(0).standard_normal((2, 200))
    expected = scipy.stats.pearsonr(x, x + y).statistic
    assert measures.correlation(x, x + y) == pytest.approx(expected)
    assert measures.correlation(x, 3 * x + 5) == pytest.approx(1)
    assert np.isnan(measures.correlation(x, np.ones(200)))


# What is done to a contour or to audio, and what it then reads.


@given(st.floats(-12, 12), st.floats(0, 0.5), st.integers(0, 99))
def test_known_perturbations_of_a_contour_read_as_they_are(semitones, share, seed):
    """All frames shifted, and a share of them with their voicing flipped."""
    wanted = contour(seed=seed)
    flipped = np.random.default_rng(seed).permutation(1000)[: round(share * 1000)]
    found = wanted * 2 ** (semitones / 12)
    found[flipped] = np.where(wanted[flipped] > 0, 0, 150.0)
    errors = measures.f0_measures(found, wanted)
    assert errors["vde"] == pytest.approx(share, abs=0.001)
    assert errors["f0_cents"] == pytest.approx(100 * abs(semitones), abs=0.01)
    assert errors["f0_rmse_cents"] == pytest.approx(100 * abs(semitones), abs=0.01)
    assert errors["f0_correlation"] == pytest.approx(1)
    is_off = abs(2 ** (semitones / 12) - 1) > 0.2
    assert errors["gpe"] == is_off
    assert errors["ffe"] >= errors["vde"]


def test_a_tenth_of_flipped_voicing_reads_10_percent():
    wanted = contour(10_000)
    flipped = np.random.default_rng(3).permutation(wanted.size) < 1000
    found = np.where(flipped, np.where(wanted > 0, 0, 150.0), wanted)
    errors = measures.f0_measures(found, wanted)
    assert errors["vde"] == pytest.approx(0.10, abs=0.005)
    assert errors["ffe"] == errors["vde"]


@pytest.mark.parametrize("gain_db", [-6, -1, 3])
def test_a_gain_is_seen_by_the_spectral_distance_alone(gain_db):
    """A gain g changes magnitudes by |1 - g| of them, and their logarithms by |ln g|."""
    gain = 10 ** (gain_db / 20)
    distance = measures.spectral_distance(gain * noise(), noise())
    assert distance == pytest.approx(abs(1 - gain) + abs(np.log(gain)), rel=1e-3)
    mcd = measures.mel_cepstral_distortion(gain * noise(), noise(), 16_000)
    assert mcd < 1e-3


@given(st.lists(st.integers(0, 4), min_size=1), st.data())
def test_the_label_error_counts_what_was_changed(wanted, data):
    """Labels that occur nowhere else, inserted: each of them is one error."""
    found = list(wanted)
    for place in data.draw(st.lists(st.integers(0, len(wanted)), max_size=4)):
        found.insert(place, 9)
    added = len(found) - len(wanted)
    assert measures.label_error(found, wanted) == added / len(wanted)
    assert measures.label_error(wanted, found) == added / len(found)
    assert measures.label_error([], wanted) == 1
    assert np.isnan(measures.label_error(found, []))
