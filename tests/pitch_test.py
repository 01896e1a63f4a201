"""From activations, or audio, to f0: against plain float64 decoders and recordings."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from svc_jax import audio_files, pitch, weights
from svc_jax.errors import UserError
from svc_jax.models.crepe import Crepe

SAMPLE_RATE = 16_000

decode_argmax = jax.jit(pitch.decode_argmax)
decode_viterbi = jax.jit(pitch.decode_viterbi)
viterbi_path = jax.jit(pitch.viterbi_path)
yin = jax.jit(pitch.yin, static_argnums=(1, 2))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# What CREPE is given.


def test_frames_have_mean_zero_and_deviation_one():
    frames = normal(3, 5, 1024) * np.geomspace(1e-4, 1, 15).reshape(3, 5, 1) + 0.3
    result = np.float64(pitch.normalise_frames(np.float32(frames), 1e-8))
    # Beside an offset of 0.3, float32 holds a deviation of 1e-4 to three digits.
    np.testing.assert_allclose(result.mean(-1), 0, atol=1e-3)
    np.testing.assert_allclose(result.std(-1), 1, atol=1e-3)


def test_a_deviation_below_the_floor_counts_as_the_floor():
    centred = normal(2, 1024) - normal(2, 1024).mean(-1, keepdims=True)
    faint = np.float32(1e-5) * centred
    result = pitch.normalise_frames(faint, 1e-3)
    np.testing.assert_allclose(result, faint / 1e-3, atol=1e-7)


def test_silent_frames_are_zero_and_have_finite_gradients():
    def total(frames):
        return jnp.sum(jnp.square(pitch.normalise_frames(frames, 1e-8) + 1))

    silence = np.zeros((2, 1024), np.float32)
    np.testing.assert_array_equal(pitch.normalise_frames(silence, 1e-8), silence)
    assert np.isfinite(jax.grad(total)(silence)).all()


ECHO = types.SimpleNamespace(apply=lambda _, frames: (frames, None))


@pytest.mark.parametrize(
    ("num_samples", "hop_length"), [(1, 160), (1600, 160), (5000, 64), (4200, 16)]
)
def test_frame_t_is_centred_on_its_hop_between_zeros(num_samples, hop_length):
    rows = [normal(num_samples), normal(1 + num_samples // 2)]
    audio = np.zeros((2, num_samples), np.float32)
    expected = []
    for place, row in zip(audio, rows, strict=True):
        place[: row.size] = row
        padded = np.pad(np.float64(row), (512, 1024 + num_samples))
        starts = range(0, num_samples + 1, hop_length)
        frames = np.stack([padded[start : start + 1024] for start in starts])
        frames -= frames.mean(-1, keepdims=True)
        expected.append(frames / np.maximum(frames.std(-1, keepdims=True), 1e-8))
    listen = jax.jit(
        functools.partial(pitch.crepe_activation, ECHO, None, hop_length=hop_length)
    )
    result = listen(audio)
    np.testing.assert_allclose(result, expected, atol=2e-5)


# Decoding.


def float64_hz(activation, path):
    """CREPE's local average: 9 bins around a path, weighted. [T, 360], [T] -> [T]."""
    cents = np.linspace(0, 7180, 360) + 1997.3794084376191
    hz = []
    for frame, centre in zip(np.float64(activation), path, strict=True):
        near = slice(max(0, centre - 4), min(360, centre + 5))
        mean = np.sum(frame[near] * cents[near]) / np.sum(frame[near])
        hz.append(10 * 2 ** (mean / 1200))
    return np.array(hz)


@functools.cache
def log_transition():
    """method.md, section 7: [360 from, 360 to]."""
    bins = np.arange(360)
    weight = np.maximum(12 - np.abs(bins[:, None] - bins), 0)
    with np.errstate(divide="ignore"):
        return np.log(weight / weight.sum(axis=1, keepdims=True))


def log_emission(observed):
    """[T] -> [T, 360]."""
    return np.log(0.1 * np.eye(360) + 0.9 / 360)[observed]


@functools.cache
def float64_viterbi(kind):
    """The plain algorithm on 1500 observations.

    Returns:
      Log probabilities of the best path to each frame but for the uniform start's, and
      a function of a number of frames that returns the path.
    """
    emission = log_emission(observations(kind))
    scores, pointers = [emission[0]], []
    for likelihood in emission[1:]:
        arriving = scores[-1][:, None] + log_transition()
        pointers.append(arriving.argmax(axis=0))
        scores.append(arriving.max(axis=0) + likelihood)

    def path(num_frames):
        bins = [scores[num_frames - 1].argmax()]
        for pointer in reversed(pointers[: num_frames - 1]):
            bins.append(pointer[bins[-1]])
        return np.array(bins[::-1])

    return np.max(scores, axis=1), path


def log_probability(path, observed):
    """Of a path, but for the uniform start's."""
    seen = log_emission(observed)[np.arange(path.size), path].sum()
    return seen + log_transition()[path[:-1], path[1:]].sum()


def activation_of(observed, seed=0):
    """Activations whose strongest bins are given: [T] -> [T, 360]."""
    rng = np.random.default_rng(seed)
    activation = rng.uniform(0, 0.8, (observed.size, 360)).astype(np.float32)
    activation[np.arange(observed.size), observed] = 0.9
    return activation


def observations(kind, num_frames=1500):
    """Strongest bins, [T]."""
    rng = np.random.default_rng(3)
    time = np.arange(1500)
    return {
        "random": rng.integers(0, 360, 1500),
        "melody": np.repeat(rng.integers(60, 250, 50), 30) + rng.integers(-3, 4, 1500),
        "octave errors": np.where(rng.random(1500) < 0.3, 190, 130),
        "too steep to follow": time * 13 % 360,
        "as steep as can be": np.abs(time * 11 % 718 - 359),
        "both ends": time // 20 % 2 * 359,
        "leap at a border": np.where(time < 512, 20, 340),
    }[kind][:num_frames]


@pytest.mark.parametrize("num_frames", [1, 2, 511, 512, 513, 1500])
@pytest.mark.parametrize(
    "kind",
    [
        *("random", "melody", "octave errors", "too steep to follow"),
        *("as steep as can be", "both ends", "leap at a border"),
    ],
)
def test_no_path_is_likelier_than_viterbis(kind, num_frames):
    observed = observations(kind, num_frames)
    path = np.asarray(viterbi_path(activation_of(observed)))
    best, _ = float64_viterbi(kind)
    assert path.dtype == np.int32
    # Equally likely paths there are many; rounding chooses among them.
    assert log_probability(path, observed) >= best[num_frames - 1] - 1e-3


@pytest.mark.parametrize("num_frames", [1, 513, 1500])
def test_the_path_of_a_held_note_with_octave_errors_is_found_bin_by_bin(num_frames):
    kind = "octave errors"
    path = viterbi_path(activation_of(observations(kind, num_frames)))
    np.testing.assert_array_equal(path, float64_viterbi(kind)[1](num_frames))


def test_each_example_is_decoded_as_if_alone():
    activation = np.stack(
        [activation_of(observations(k, 600)) for k in ("random", "melody", "both ends")]
    )
    together = viterbi_path(activation)
    for row, path in zip(activation, together, strict=True):
        np.testing.assert_array_equal(viterbi_path(row), path)
    np.testing.assert_array_equal(viterbi_path(activation[None]), together[None])


@pytest.mark.parametrize("decode", [decode_argmax, decode_viterbi])
def test_f0_is_the_local_average_around_the_path(decode):
    # The peaks of a held note, at both ends too, are where the path goes.
    observed = np.repeat([0, 2, 180, 357, 359], 30)
    activation = activation_of(observed)
    f0_hz, confidence = decode(activation)
    path = viterbi_path(activation) if decode is decode_viterbi else observed
    expected = float64_hz(activation, np.asarray(path))
    np.testing.assert_allclose(f0_hz, expected, rtol=1e-5)
    np.testing.assert_array_equal(confidence, np.full(150, 0.9, np.float32))


def test_a_lone_bin_has_its_published_frequency():
    bins = np.array([0, 228, 359])
    f0_hz, _ = decode_argmax(np.eye(360, dtype=np.float32)[bins])
    # 32.70 Hz is C1, the first of CREPE's bins but for the shift of its later versions.
    cents = 1997.3794084376191 + 20 * bins
    np.testing.assert_allclose(f0_hz, 10 * 2 ** (cents / 1200), rtol=1e-6)
    assert 31.6 < f0_hz[0] < 31.8 and 2005 < f0_hz[2] < 2007


def test_viterbi_mends_what_argmax_mistakes():
    melody = np.full(100, 130)
    melody[[20, 50, 51, 80]] += 60  # an octave up
    activation = np.exp(-(((np.arange(360) - melody[:, None]) / 3) ** 2) / 2)
    activation += 0.5 * np.exp(-(((np.arange(360) - 130) / 3) ** 2) / 2)
    right = 10 * 2 ** ((1997.3794084376191 + 20 * 130) / 1200)
    by_argmax, by_path = (
        np.asarray(decode(np.float32(activation))[0])
        for decode in (decode_argmax, decode_viterbi)
    )
    assert (np.abs(by_argmax / right - 2) < 1e-2).sum() == 4
    np.testing.assert_allclose(by_path, right, rtol=1e-2)


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 50])
def test_median_filter_is_scipys(width, num_frames):
    x = normal(2, num_frames)
    expected = scipy.ndimage.median_filter(x, size=(1, width), mode="nearest")
    np.testing.assert_array_equal(pitch.median_filter(x, width), expected)


def test_voiced_is_where_the_median_confidence_reaches_a_half():
    # One doubtful frame is passed over; a run of three is not.
    confidence = [0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.9, 0.5]
    expected = [100, 110, 120, 130, 140, 150, 160, 0, 0, 0, 200, 210]
    f0_hz = np.arange(100, 220, 10, dtype=np.float32)
    result = pitch.voiced_f0(f0_hz[None], np.float32([confidence]))
    np.testing.assert_array_equal(result, [expected])


# Tones and recordings.


def vibrato(hz, harmonics, num_samples=8000):
    """A tone of some harmonics that glides by a semitone: audio, f0_hz per sample."""
    time = np.arange(num_samples) / SAMPLE_RATE
    f0_hz = hz * 2 ** (np.sin(2 * np.pi * 3 * time) / 24)
    turns = np.cumsum(f0_hz) / SAMPLE_RATE
    sines = [np.sin(2 * np.pi * k * turns) / k for k in range(1, harmonics + 1)]
    return np.float32(0.3 * np.sum(sines, axis=0)), f0_hz


def cents_off(f0_hz, true_hz):
    return np.abs(1200 * np.log2(np.asarray(f0_hz) / true_hz))


def raw_pitch_accuracy(f0_hz, hop_length, true_seconds, true_hz):
    """mir_eval's: of the frames annotated as voiced, the share within 50 cents.

    The estimate counts in each frame, voiced or not; between its frames it is
    interpolated.
    """
    seconds = np.arange(f0_hz.size) * hop_length / SAMPLE_RATE
    estimate = np.interp(true_seconds, seconds, f0_hz)
    voiced = true_hz > 0
    return np.mean(cents_off(estimate[voiced], true_hz[voiced]) <= 50)


@pytest.fixture(scope="module")
def tiny():
    """Hears audio [N] with CREPE tiny: (f0_hz, confidence) on a grid of 160."""
    try:
        params = weights.crepe("tiny", allow_download=False).params
    except UserError as error:
        pytest.skip(f"needs CREPE's weights: {error}")

    @jax.jit
    def hear(audio):
        activation = pitch.crepe_activation(Crepe("tiny"), params, audio[None], 160)
        return pitch.decode_viterbi(activation[0])

    return lambda audio: jax.device_get(hear(audio))


@pytest.fixture(scope="module")
def song(test_data):
    """A song with its annotation: audio [N], seconds [T], f0_hz [T]."""
    folder = test_data / "data/f0/vocadito_1"
    audio = audio_files.read(folder / "vocadito_1.wav", SAMPLE_RATE).audio
    seconds, f0_hz = np.loadtxt(folder / "vocadito_1_f0.csv", delimiter=",").T
    return audio, seconds, f0_hz


@pytest.mark.parametrize("hz", [55, 110, 261.6, 523.3, 1200])
def test_crepe_follows_a_vibrato(tiny, hz):
    audio, true_hz = vibrato(hz, harmonics=6)
    f0_hz, confidence = tiny(audio)
    inside = slice(4, 47)
    assert f0_hz.shape == confidence.shape == (51,)
    assert cents_off(f0_hz[inside], true_hz[::160][inside]).max() < 25
    assert confidence[inside].min() > 0.5


@pytest.mark.parametrize("hz", [33, 50, 1300, 1990])
def test_crepe_follows_pitch_at_the_ends_of_its_range(tiny, hz):
    """Steady tones of many harmonics, a little noise beside them."""
    seconds = np.arange(16_000) / SAMPLE_RATE
    orders = np.arange(1, min(20, 7900 // hz) + 1)[:, None]
    tone = np.sin(2 * np.pi * orders * hz * seconds + orders) / orders
    f0_hz, confidence = tiny(
        (0.2 * tone).sum(axis=0).astype("f4") + normal(16_000) / 1e4
    )
    cents = 1200 * np.log2(f0_hz[10:-10] / hz)
    assert abs(np.median(cents)) < 30
    assert np.median(confidence[10:-10]) > 0.6


def test_crepe_hears_a_song_as_it_is_annotated(tiny, song):
    audio, seconds, true_hz = song
    f0_hz, _ = tiny(audio)
    assert raw_pitch_accuracy(f0_hz, 160, seconds, true_hz) >= 0.97


def test_crepe_hears_its_authors_sweep_rise_evenly(tiny, test_data):
    audio = audio_files.read(test_data / "golden/crepe/sweep.wav", SAMPLE_RATE).audio
    f0_hz, confidence = tiny(audio)
    sure = confidence > 0.5
    assert np.mean(sure) > 0.98
    assert np.all(np.diff(f0_hz[sure]) > 0)
    frames = np.flatnonzero(sure)
    octaves = np.log2(f0_hz[sure])
    line = np.polynomial.Polynomial.fit(frames, octaves, 1)
    assert np.abs(octaves - line(frames)).max() < 1 / 24


@pytest.mark.parametrize("harmonics", [1, 8])
@pytest.mark.parametrize("hz", [60, 97.3, 220, 440, 800])
def test_yin_follows_a_vibrato(hz, harmonics):
    audio, true_hz = vibrato(hz, harmonics)
    f0_hz, confidence = (np.asarray(x)[0] for x in yin(audio[None], SAMPLE_RATE, 160))
    inside = slice(8, 43)  # a window of 60 ms within the tone
    assert f0_hz.shape == confidence.shape == (51,)
    assert cents_off(f0_hz[inside], true_hz[::160][inside]).max() < 15
    assert confidence[inside].min() > 0.9


@pytest.mark.parametrize(
    ("audio", "highest"),
    [(np.zeros(8000, np.float32), 0.0), (0.1 * normal(8000), 0.5)],
    ids=["silence", "noise"],
)
def test_yin_is_not_confident_without_a_pitch(audio, highest):
    f0_hz, confidence = yin(audio[None], SAMPLE_RATE, 160)
    assert np.isfinite(f0_hz).all()
    assert confidence.max() <= highest


def test_yin_hears_a_song_nearly_as_it_is_annotated(song):
    audio, seconds, true_hz = song
    f0_hz, _ = yin(audio[None], SAMPLE_RATE, 160)
    assert raw_pitch_accuracy(np.asarray(f0_hz[0]), 160, seconds, true_hz) >= 0.9


def test_a_pause_does_not_bend_the_next_note():
    activation = np.zeros((60, 360), np.float32)
    activation[:20, 300] = activation[40:, 200] = 0.9
    path = np.asarray(pitch.viterbi_path(activation))
    np.testing.assert_array_equal(path[:20], 300)
    np.testing.assert_array_equal(path[40:], 200)


def test_the_path_does_not_hear_what_follows_the_end():
    activation = np.random.default_rng(3).random((3, 700, 360), np.float32)
    lengths = np.asarray([700, 513, 40])
    together = np.asarray(pitch.viterbi_path(activation, lengths))
    for row, length in enumerate(lengths):
        alone = np.asarray(pitch.viterbi_path(activation[row, :length]))
        np.testing.assert_array_equal(together[row, :length], alone)


# Slips of an octave.


def sung_contour(frame_rate: int) -> np.ndarray:
    """Three notes with vibrato, gliding from one to the next, between pauses."""
    note = np.repeat([57.0, 61.0, 55.0], frame_rate)
    note = np.convolve(np.pad(note, 20, mode="edge"), np.ones(41) / 41, mode="valid")
    note += 0.5 * np.sin(2 * np.pi * 5.5 * np.arange(note.size) / frame_rate)
    f0_hz = 440 * 2 ** ((note - 69) / 12)
    pause = np.zeros(frame_rate // 2)
    return np.concatenate([pause, f0_hz, pause, f0_hz]).astype(np.float32)


@pytest.mark.parametrize("frame_rate", [100, 250])
@pytest.mark.parametrize("octave", [0.5, 2.0])
# Within a note, and at its beginning.
@pytest.mark.parametrize("seconds", [1.2, 0.5])
@pytest.mark.parametrize("glide", [0, 5])
def test_a_slip_of_an_octave_is_repaired(frame_rate, octave, seconds, glide):
    truth = sung_contour(frame_rate)
    slipped = truth.copy()
    first = round(seconds * frame_rate)
    last = first + frame_rate // 10
    slipped[first:last] *= octave
    if glide:  # as Viterbi, which cannot jump
        steps = octave ** (np.arange(1, glide + 1) / (glide + 1))
        slipped[last : last + glide] *= steps[::-1]
    found, count = pitch.repair_octaves(slipped, frame_rate)
    cents = 1200 * np.log2(found[truth > 0] / truth[truth > 0])
    assert np.abs(cents).max() < 210  # the rest of a glide, for a frame
    untouched = np.ones(truth.size, bool)
    untouched[first : last + glide] = False
    np.testing.assert_array_equal(found[untouched], truth[untouched])
    np.testing.assert_allclose(found[first:last], truth[first:last], rtol=1e-5)
    assert frame_rate // 10 <= count <= frame_rate // 10 + glide


def test_octaves_that_are_sung_are_left_alone():
    truth = sung_contour(100)
    for first, last in ((100, 140), (100, 260), (0, 0)):  # 0.4 s, a note; none
        leap = truth.copy()
        leap[first:last] *= 2
        found, count = pitch.repair_octaves(leap, 100)
        np.testing.assert_array_equal(found, leap)
        assert count == 0
    fifth = truth.copy()
    fifth[120:130] *= 1.5
    assert pitch.repair_octaves(fifth, 100)[1] == 0


def test_silence_has_no_octaves():
    assert pitch.repair_octaves(np.zeros(10, np.float32), 100)[1] == 0
    assert pitch.repair_octaves(np.full(1, 200, np.float32), 100)[1] == 0
