"""Features of recordings: alone, in batches, of segments, of anything."""

import functools

import jax
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_jax import pitch, weights
from svc_jax.errors import UserError
from svc_jax.features import FeatureExtractor, FrozenParams
from svc_jax.geometry import FrameGeometry
from svc_jax.models.crepe import Crepe
from svc_jax.models.wav2letter import Wav2Letter
from svc_jax.models.wavenet import WaveNetGenerator
from svc_jax.types import Features, Noise

SAMPLE_RATE = 16_000
READER = Wav2Letter(6, 8, 5, kernels=(6, 3), wide_kernel=4)
BY_YIN = FeatureExtractor(FrameGeometry(), None, READER)
BY_CREPE = FeatureExtractor(FrameGeometry(), Crepe("tiny"), READER)
TOLERANCES = {"f0_hz": 0.02, "loudness_db": 1e-3, "asr_features": 2e-3}


def noise(num_samples, level=1e-3):
    """Of one standard deviation, float32 [num_samples]."""
    normal = np.random.default_rng(num_samples).standard_normal(num_samples)
    return np.float32(level * normal)


def voice(hz, num_samples, amplitude=0.3):
    """Eight harmonics and a faint noise, float32 [num_samples]; it ends abruptly."""
    turns = hz * np.arange(num_samples) / SAMPLE_RATE
    harmonics = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 9))
    return np.float32(amplitude * harmonics) + noise(num_samples)


@pytest.fixture(scope="module")
def frozen():
    """CREPE tiny as published and a random Wav2Letter."""
    try:
        crepe = weights.crepe("tiny", allow_download=False).params
    except UserError as error:
        pytest.skip(f"needs CREPE's weights: {error}")
    mfcc = np.zeros((1, 20, 39), np.float32)
    wav2letter = jax.jit(READER.init)(jax.random.key(0), mfcc)["params"]
    return FrozenParams(crepe, jax.device_get(wav2letter))


@functools.partial(jax.jit, static_argnums=0, static_argnames="viterbi")
def extract(extractor, frozen, audio, length=None, asr_stats=None, viterbi=True):
    return extractor.extract(frozen, audio, length, asr_stats, viterbi)


yin = jax.jit(pitch.yin, static_argnums=(1, 2))


def assert_same(result, expected, frames=slice(None), asr_frames=slice(None)):
    """Holds the features of [.., T, ..] against those of the same frames."""
    for name, tolerance in TOLERANCES.items():
        part = asr_frames if name == "asr_features" else frames
        pair = (getattr(x, name)[part] for x in (result, expected))
        np.testing.assert_allclose(*pair, rtol=0, atol=tolerance, err_msg=name)


def row(features, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], features)


EITHER = pytest.mark.parametrize("extractor", [BY_CREPE, BY_YIN], ids=["crepe", "yin"])


@pytest.mark.parametrize(
    ("asr_layer", "size"), [("hidden", 6), ("wide", 8), ("logits", 5)]
)
def test_every_feature_is_on_its_grid(frozen, asr_layer, size):
    extractor = FeatureExtractor(FrameGeometry(), Crepe("tiny"), READER, asr_layer)
    audio = jax.ShapeDtypeStruct((2, 3200), np.float32)
    result = jax.eval_shape(functools.partial(extractor.extract, frozen), audio)
    assert extractor.asr_size == size
    assert jax.tree.map(lambda x: x.shape, result) == type(result)(
        Features((2, 50), (2, 50), (2, 10, size)), (2, 50), (2, 3, 13, 2)
    )


@EITHER
@pytest.mark.parametrize("num_samples", [1, 3000, 20_500])
def test_a_recording_has_its_features_whatever_it_is_padded_to(
    frozen, extractor, num_samples
):
    audio = voice(220, num_samples)
    length = -(-num_samples // 320) * 320
    exact = np.pad(audio, (0, length - num_samples))[None]
    [recording] = extractor.extract_recordings(frozen, [audio])
    alone = extract(extractor, frozen, exact)
    assert recording.features.f0_hz.shape == (length // 64,)
    assert_same(recording.features, row(alone.features, 0))
    np.testing.assert_allclose(
        recording.f0_confidence, alone.f0_confidence[0], atol=1e-4
    )
    np.testing.assert_allclose(recording.asr_stats, alone.asr_stats[0], rtol=1e-4)


@EITHER
def test_recordings_are_extracted_in_their_order_on_their_own(frozen, extractor):
    recordings = [voice(hz, n) for hz, n in ((220, 3000), (330, 20_500), (440, 9000))]
    together = extractor.extract_recordings(frozen, recordings)
    for audio, result, hz in zip(recordings, together, (220, 330, 440), strict=True):
        [alone] = extractor.extract_recordings(frozen, [audio])
        jax.tree.map(np.testing.assert_array_equal, result, alone)
        voiced = result.features.f0_hz[result.features.f0_hz > 0]
        assert np.median(voiced) == pytest.approx(hz, rel=0.01)


def test_recordings_in_batches_have_their_own_features(frozen):
    extractor = BY_YIN
    sizes = (3000, 20_500, 9000, 16_000, 15_000)
    recordings = [voice(220 + 50 * n, size) for n, size in enumerate(sizes)]
    together = extractor.extract_recordings(frozen, recordings, batch_size=3)
    alone = extractor.extract_recordings(frozen, recordings)
    for one, other in zip(together, alone, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
            one,
            other,
        )


@EITHER
def test_what_lies_beyond_the_end_is_not_heard(frozen, extractor):
    lengths = np.array([1600, 6400, 8000])
    rows = [voice(hz, n) for hz, n in zip((220, 330, 440), lengths, strict=True)]
    batches = []
    for garbage in (np.zeros(8000), voice(555, 8000), np.full(8000, 1e3)):
        batch = np.stack([np.append(x, garbage[x.size :]) for x in rows])
        batches.append(extract(extractor, frozen, np.float32(batch), lengths))
    for index, length in enumerate(lengths):
        silent, *others = (row(batch, index) for batch in batches)
        for other in others:
            np.testing.assert_array_equal(other.asr_stats, silent.asr_stats)
            for name in TOLERANCES:
                real = length // (320 if name == "asr_features" else 64)
                np.testing.assert_array_equal(
                    getattr(other.features, name)[:real],
                    getattr(silent.features, name)[:real],
                    err_msg=name,
                )


def song():
    """Three seconds: a note, a pause, the loudest note, and a glide."""
    hz = 300 * 2 ** (np.arange(14_000) / 14_000)
    glide = 0.3 * np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)
    parts = [voice(220, 14_000), noise(4000), voice(440, 16_000, 0.5)]
    return np.float32(np.concatenate([*parts, glide + noise(14_000)]))


@EITHER
def test_a_segment_with_its_recordings_statistics_has_its_features(frozen, extractor):
    whole = song()[None]
    # With the loudest note in it, whose MFCCs set the floor of all others.
    start, stop = 12_800, 28_800
    recording = extract(extractor, frozen, whole, viterbi=False)
    segment = extract(
        extractor,
        frozen,
        whole[:, start:stop],
        asr_stats=recording.asr_stats,
        viterbi=False,
    )
    np.testing.assert_array_equal(segment.asr_stats, recording.asr_stats)
    frames, asr_frames = (
        slice(start // 64, stop // 64),
        slice(start // 320, stop // 320),
    )
    of_recording = Features(
        recording.features.f0_hz[0, frames],
        recording.features.loudness_db[0, frames],
        recording.features.asr_features[0, asr_frames],
    )
    # At its borders a segment hears reflections or zeros, at most 1024 samples far,
    # and the recogniser that of MFCCs and deltas (900 samples) and of its own context.
    border = READER.context_frames() + 3
    inside, asr_inside = slice(24, -24), slice(border, -border)
    assert_same(row(segment.features, 0), of_recording, inside, asr_inside)
    voiced = np.asarray(of_recording.f0_hz)[inside] > 0
    assert 0.5 < voiced.mean() < 1


def test_content_is_normalised_by_the_statistics_that_are_given(frozen):
    audio = song()[None]
    own = extract(BY_YIN, frozen, audio)
    again, faint = (
        extract(BY_YIN, frozen, np.float32(gain) * audio, asr_stats=own.asr_stats)
        for gain in (1, 0.25)
    )
    expected = own.features.asr_features
    np.testing.assert_allclose(again.features.asr_features, expected, atol=1e-4)
    # So a segment that is too faint sounds different, as L_w2l needs it.
    assert np.abs(faint.features.asr_features - expected).mean() > 0.05
    np.testing.assert_array_equal(faint.asr_stats, own.asr_stats)


@EITHER
def test_gain_moves_loudness_by_its_decibels_and_pitch_not_at_all(frozen, extractor):
    audio = (voice(220, 9600) + noise(9600, 0.1))[None]
    before, after = (extract(extractor, frozen, g * audio) for g in (1, 0.5))
    shift = after.features.loudness_db - before.features.loudness_db
    # Within what a few of the lowest bins, where they touch their floor, hold back.
    np.testing.assert_allclose(shift, 20 * np.log10(0.5), atol=0.01)
    np.testing.assert_allclose(
        after.features.f0_hz, before.features.f0_hz, rtol=1e-4, atol=0
    )


def test_pitch_embedding_is_of_consecutive_frames_and_blind_to_gain(frozen):
    audio = np.stack([voice(220, 5000), voice(330, 5000, 0.05)])
    embed = jax.jit(BY_CREPE.pitch_embedding)
    expected = embed(frozen, audio)
    assert expected.shape == (2, 4, 8 * 32)
    frames = np.float64(audio[:, :4096].reshape(2, 4, 1024))
    frames -= frames.mean(-1, keepdims=True)
    frames /= frames.std(-1, keepdims=True)
    heard = jax.jit(BY_CREPE.crepe.apply)({"params": frozen.crepe}, np.float32(frames))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(expected, heard[1], rtol=0, atol=1e-4 * scale)
    for gain in (0.1, 8):
        result = embed(frozen, np.float32(gain) * audio)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * scale)
    # Far below a deviation of 1e-3 all is silence, so that noise is not blown up.
    silence = embed(frozen, np.zeros_like(audio))
    faint = embed(frozen, np.float32(1e-6) * audio)
    np.testing.assert_allclose(faint, silence, rtol=0, atol=0.01 * scale)
    assert np.abs(expected - silence).max() > 0.1 * scale


# f0 on our grid.


@EITHER
@pytest.mark.parametrize("level", [1e-3, 0.0], ids=["noise", "digital silence"])
def test_f0_jumps_between_notes_and_pauses(frozen, extractor, level):
    pause = noise(3200, level)
    notes = [pause, voice(440, 4800), pause, voice(660, 4800), pause]
    audio = np.concatenate(notes)[None]
    f0_hz = np.asarray(extract(extractor, frozen, audio).features.f0_hz[0])
    seconds = np.arange(f0_hz.size) * 64 / SAMPLE_RATE
    for hz, start, stop in ((440, 0.2, 0.5), (660, 0.7, 1.0)):
        note = (seconds > start + 0.04) & (seconds < stop - 0.04)
        np.testing.assert_allclose(f0_hz[note], hz, rtol=0.005)
        near = (seconds > start - 0.05) & (seconds < stop + 0.05)
        voiced = f0_hz[near & (f0_hz > 0)]
        np.testing.assert_allclose(voiced, hz, rtol=0.03)  # no way down to zero
    far = [(seconds < 0.15), (seconds > 0.55) & (seconds < 0.65), (seconds > 1.05)]
    assert not f0_hz[np.any(far, axis=0)].any()


def test_f0_is_that_of_crepes_grid_after_a_median_of_confidence(frozen):
    audio = song()[None]
    result = extract(BY_YIN, frozen, audio)
    f0_hz, confidence = (np.asarray(x)[0] for x in yin(audio, SAMPLE_RATE, 160))
    smooth = scipy.ndimage.median_filter(confidence, 5, mode="nearest")
    f0_hz = np.where(smooth >= 0.5, f0_hz, 0)
    expected = []
    for frame in range(result.features.f0_hz.shape[1]):
        position = frame * 64 / 160
        index, share = int(position), position % 1
        left, right = f0_hz[index], f0_hz[min(index + 1, f0_hz.size - 1)]
        both = left > 0 and right > 0
        nearest = left if share < 0.5 else right
        expected.append(left + share * (right - left) if both else nearest)
        at = min(int(position + 0.5), confidence.size - 1)
        assert result.f0_confidence[0, frame] == pytest.approx(confidence[at], abs=1e-4)
    assert 0.05 < np.mean(np.equal(expected, 0)) < 0.5
    np.testing.assert_allclose(result.features.f0_hz[0], expected, rtol=1e-4)


def test_f0_may_be_computed_on_our_own_grid(frozen):
    extractor = FeatureExtractor(FrameGeometry(), None, READER, f0_hop=64)
    audio = song()[None]
    expected = pitch.voiced_f0(*yin(audio, SAMPLE_RATE, 64))[:, :750]
    result = extract(extractor, frozen, audio).features.f0_hz
    np.testing.assert_allclose(result, expected, rtol=1e-4)


# Anything at all.


GENERATOR = WaveNetGenerator(
    num_singers=2,
    embedding_size=3,
    channels=4,
    gate_channels=4,
    skip_channels=4,
    dilations=(1, 2, 4),
    context_channels=4,
    context_gate_channels=4,
    loudness_dilations=(1,),
    asr_dilations=(1,),
    sine_dilations=(1, 2),
)


def embed_and_sing(module, singer_id, features, noise):
    return module(features, module.embed(singer_id), noise)


@functools.cache
def singer():
    """Compiled: (singer_id, features, noise) -> audio, with random parameters."""
    shapes = jax.eval_shape(
        functools.partial(GENERATOR.init, method=embed_and_sing),
        jax.random.key(0),
        np.zeros(1, np.int32),
        Features(np.zeros((1, 5)), np.zeros((1, 5)), np.zeros((1, 1, 8))),
        Noise(np.zeros((1, 320)), np.zeros((1, 320)), np.zeros(1)),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), shapes)
    return jax.jit(functools.partial(GENERATOR.apply, params, method=embed_and_sing))


def sound(kind, num_samples, hz):
    """Audio that somebody will feed it sooner or later, float32 [num_samples]."""
    sine = np.sin(2 * np.pi * hz * np.arange(num_samples) / SAMPLE_RATE)
    return np.float32(
        {
            "silence": 0 * sine,
            "direct current": 0 * sine + 0.7,
            "clipped": np.clip(100 * sine, -1, 1),
            "noise": noise(num_samples, 0.3),
            "sine": 0.5 * sine,
            "faintest": 1e-30 * sine,
            "far too loud": noise(num_samples, 1e4),
            "a click": np.arange(num_samples) == num_samples // 2,
        }[kind]
    )


KINDS = ["silence", "direct current", "clipped", "noise", "sine", "faintest"]
KINDS += ["far too loud", "a click"]


@EITHER
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=3)
@given(
    num_samples=st.sampled_from([1, 2, 319, 640, 641, 8000, 16_000]),
    hz=st.floats(32, 2000),
    sung_hz=st.none() | st.just(0.0) | st.floats(32, 2000),
)
def test_anything_has_finite_features_and_is_sung(
    frozen, extractor, kind, num_samples, hz, sung_hz
):
    [result] = extractor.extract_recordings(frozen, [sound(kind, num_samples, hz)])
    length = -(-num_samples // 320) * 320
    features = result.features
    assert features.f0_hz.shape == features.loudness_db.shape == (length // 64,)
    assert result.f0_confidence.shape == (length // 64,)
    assert features.asr_features.shape == (length // 320, 8)
    assert result.asr_stats.shape == (3, 13, 2)
    for leaf in jax.tree.leaves(result):
        assert leaf.dtype == np.float32 and np.isfinite(leaf).all()
    assert np.all((features.f0_hz == 0) | (features.f0_hz > 20))
    assert np.all((result.f0_confidence >= 0) & (result.f0_confidence <= 1))
    assert np.all(features.loudness_db >= -120)

    if sung_hz is not None:  # of a held note, or of none
        features = features.replace(f0_hz=np.full_like(features.f0_hz, sung_hz))
    rng = np.random.default_rng(0)
    noise = Noise(
        np.float32(rng.uniform(size=(1, length))),
        np.float32(rng.standard_normal((1, length))),
        np.zeros(1, np.float32),
    )
    features = jax.tree.map(lambda x: x[None], features)
    audio = singer()(np.array([1]), features, noise)
    assert audio.shape == (1, length)
    assert np.isfinite(audio).all()
