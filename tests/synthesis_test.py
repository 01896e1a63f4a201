"""The rules of conversion, and singing in chunks as if in one pass."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import schema
from svc_jax import bundles, excitation, steps, synthesis
from svc_jax.errors import UserError
from svc_jax.types import Features, Noise

CHUNK = 1600


@pytest.fixture(scope="module")
def model(model_workdir) -> bundles.Model:
    return bundles.load(model_workdir)


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def features_of(num_asr_frames: int, seed: int = 0) -> Features:
    """Features of a recording with gliding notes and rests."""
    rng = np.random.default_rng(seed)
    frame = np.arange(5 * num_asr_frames)
    f0_hz = 200 + 40 * np.sin(frame / 7) + rng.normal(0, 2, frame.size)
    f0_hz[frame % 60 > 45] = 0
    return Features(
        f0_hz.astype(np.float32),
        (-70 + 20 * np.sin(frame / 11)).astype(np.float32),
        rng.normal(0, 1, (num_asr_frames, 12)).astype(np.float32),
    )


def directly(model, features, voice, seed: int) -> np.ndarray:
    """One pass of the generator over the whole."""
    num_samples = features.f0_hz.size * 64
    z, normal = excitation.block_noise(jax.random.key(seed), num_samples)
    noise = Noise(z[None], normal[None], jnp.zeros(1))
    batched = jax.tree.map(lambda x: x[None], features)
    apply = jax.jit(model.generator.apply)
    return np.asarray(apply({"params": model.params}, batched, voice, noise)[0])


# Chunks.


@pytest.mark.parametrize(
    "num_asr_frames",
    # A frame; a chunk and just more; what one pass sees and just more; many chunks.
    [1, 5, 6, 15, 16, 47],
)
def test_chunks_are_the_whole(model, monkeypatch, num_asr_frames):
    monkeypatch.setattr(synthesis, "CHUNK_SAMPLES", CHUNK)
    features = features_of(num_asr_frames)
    voice, _ = synthesis.voice_of(model, {"alto": 1.0})
    chunked = synthesis.synthesize(model, features, voice, seed=3)
    whole = directly(model, features, voice, 3)
    assert chunked.dtype == np.float32
    assert chunked.shape == whole.shape == (320 * num_asr_frames,)
    assert np.abs(chunked - whole).max() < 1e-4
    assert np.abs(whole).max() > 0.1  # there is something to compare


@pytest.mark.parametrize("context", ["context_samples", "audio_context_samples"])
def test_chunks_without_context_would_not_be_the_whole(model, monkeypatch, context):
    monkeypatch.setattr(synthesis, "CHUNK_SAMPLES", CHUNK)
    for name in {context, "audio_context_samples"}:
        monkeypatch.setattr(type(model.generator), name, lambda _: 0)
    features = features_of(47)
    voice, _ = synthesis.voice_of(model, {"alto": 1.0})
    chunked = synthesis.synthesize(model, features, voice, seed=3)
    error = np.abs(chunked - directly(model, features, voice, 3))
    assert error.max() > 1e-2
    seams = np.arange(CHUNK, error.size - CHUNK, CHUNK)
    assert (error[seams] > 1e-4).all()


def test_a_song_and_its_beginning_begin_alike(model):
    """Noise is a function of where in the song it is, not of the song's length."""
    song, voice = features_of(60), synthesis.voice_of(model, {"bass": 1.0})[0]
    beginning = Features(
        song.f0_hz[:160], song.loudness_db[:160], song.asr_features[:32]
    )
    whole = synthesis.synthesize(model, song, voice)
    part = synthesis.synthesize(model, beginning, voice)
    heard_alike = part.size - model.generator.context_samples()
    assert heard_alike > 6000
    difference = np.abs(part - whole[: part.size])
    assert difference[:heard_alike].max() < 1e-4
    assert difference[heard_alike:].max() > 1e-2


def test_singing_is_a_function_of_the_seed(model):
    features, voice = features_of(16), synthesis.voice_of(model, {"bass": 1.0})[0]
    first = synthesis.synthesize(model, features, voice, seed=1)
    again = synthesis.synthesize(model, features, voice, seed=1)
    other = synthesis.synthesize(model, features, voice, seed=2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


# Transposition (method.md, section 5).

contours = st.lists(
    st.one_of(st.just(0.0), st.floats(50, 1000)), min_size=1, max_size=50
).map(lambda values: np.array(values, np.float32))
sung = contours.filter(lambda f0_hz: (f0_hz > 0).any())
target_means = st.floats(60, 900)


@given(sung, target_means)
def test_mean_moves_the_arithmetic_mean_to_the_singers(f0_hz, mean_hz):
    factor = synthesis.transposition("mean", f0_hz, mean_hz)
    shifted = f0_hz.astype(np.float64) * factor
    assert np.mean(shifted[shifted > 0]) == pytest.approx(mean_hz, rel=1e-6)


@given(sung, target_means)
def test_octave_is_the_nearest_one(f0_hz, mean_hz):
    factor = synthesis.transposition("octave", f0_hz, mean_hz)
    octaves = math.log2(factor)
    assert octaves == round(octaves)
    wanted = math.log2(mean_hz / np.mean(f0_hz[f0_hz > 0], dtype=np.float64))
    assert abs(wanted - octaves) <= 0.5 + 1e-6


@given(contours, target_means)
def test_none_is_no_transposition(f0_hz, mean_hz):
    assert synthesis.transposition("none", f0_hz, mean_hz) == 1


@pytest.mark.parametrize("rule", ["mean", "octave"])
def test_what_has_no_pitch_is_not_transposed(rule):
    assert synthesis.transposition(rule, np.zeros(10, np.float32), 300.0) == 1


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        ("12", 2),
        ("-12", 0.5),
        ("0", 1),
        ("7", 1.498307),
        ("-3.5", 0.816958),
        ("48", 16),
    ],
)
def test_semitones_are_tempered(rule, factor):
    found = synthesis.transposition(rule, np.ones(3), 300.0)
    assert found == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("rule", ["", "up", "Mean", "3 semitones", "1,5", "octave:1"])
def test_unknown_rules_are_refused_with_the_known_ones(rule):
    line = refusal(synthesis.transposition, rule, np.ones(3), 300.0)
    known = "choose mean, octave, none or semitones as -3.5."
    assert line == f"--transpose {rule!r}: {known}"


@pytest.mark.parametrize("rule", ["nan", "inf", "-inf", "1e9", "48.5", "-100"])
def test_impossible_semitones_are_refused(rule):
    line = refusal(synthesis.transposition, rule, np.ones(3), 300.0)
    assert line == f"--transpose {rule}: choose from -48 to 48 semitones."


# Mixtures.


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("alto:1", {"alto": 1.0}),
        ("alto:0.25,bass:0.75", {"alto": 0.25, "bass": 0.75}),
        (" alto : 0.5 , bass:.5", {"alto": 0.5, "bass": 0.5}),
        ("choir:alto:0.5,choir:bass:0.5", {"choir:alto": 0.5, "choir:bass": 0.5}),
        ("alto:0,bass:1e0", {"alto": 0.0, "bass": 1.0}),
    ],
)
def test_a_mixture_is_read(text, mix):
    assert synthesis.parse_mix(text) == mix


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_rounded_weights_are_a_convex_combination(weights):
    shares = [weight / sum(weights) for weight in weights]
    text = ",".join(f"s{n}:{share:.5f}" for n, share in enumerate(shares))
    mix = synthesis.parse_mix(text)
    assert sum(mix.values()) == pytest.approx(1, abs=1e-12)
    assert list(mix.values()) == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        ("alto", "'alto' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        ("alto:0.5,", "'' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        ("alto:half,bass:0.5", "'alto:half' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        (":1", "':1' is not NAME:WEIGHT; write A:0.5,B:0.5."),
        ("alto:0.5,alto:0.5", "alto stands twice; add its weights."),
        ("alto:-0.5,bass:1.5", "alto has weight -0.5; a mixture of voices takes"),
        ("alto:nan,bass:1", "alto has weight nan; a mixture of voices takes weights"),
        ("alto:0.5,bass:0.4", "the weights add up to 0.9; they must add up to 1."),
        ("alto:1,bass:1", "the weights add up to 2; they must add up to 1."),
        ("alto:inf", "the weights add up to inf; they must add up to 1."),
        ("alto:0", "the weights add up to 0; they must add up to 1."),
    ],
)
def test_what_is_not_a_mixture_is_refused(text, said):
    line = refusal(synthesis.parse_mix, text)
    assert line.startswith(f"--mix {text!r}: {said}")


def test_a_voice_is_the_convex_combination(model):
    table = np.asarray(model.params["singers"]["embedding"])
    alto, bass = (singer.mean_f0_hz for singer in model.card.singers)
    for mix, row, mean_hz in (
        ({"alto": 1.0}, table[0], alto),
        ({"bass": 1.0}, table[1], bass),
        (
            {"bass": 0.3, "alto": 0.7},
            0.7 * table[0] + 0.3 * table[1],
            0.7 * alto + 0.3 * bass,
        ),
    ):
        voice, found_hz = synthesis.voice_of(model, mix)
        assert voice.shape == (1, 6)
        np.testing.assert_allclose(voice[0], row, rtol=1e-5, atol=1e-6)
        assert found_hz == pytest.approx(mean_hz, rel=1e-6)
    assert np.abs(table[0] - table[1]).max() > 0.1


def test_unknown_singers_are_refused_with_the_known_ones(model):
    line = refusal(synthesis.voice_of, model, {"alto": 0.5, "tenor": 0.5})
    assert line == "singer 'tenor' is unknown; the model knows alto, bass."


# Conversion.


def recording(num_samples: int, hz: float = 220.0) -> np.ndarray:
    turns = hz * np.arange(num_samples) / 16_000
    audio = sum(0.3 / k * np.sin(2 * np.pi * k * turns) for k in range(1, 6))
    return audio.astype(np.float32) + np.float32(1e-3)


@pytest.mark.parametrize("num_samples", [1, 319, 320, 321, 10_000])
def test_a_conversion_is_as_long_as_its_source(model, num_samples):
    audio, features = synthesis.convert(model, recording(num_samples), {"bass": 1.0})
    assert audio.shape == (num_samples,)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert audio.any()
    assert features.f0_hz.size == 5 * -(-num_samples // 320)


@pytest.mark.parametrize(
    ("transpose", "ratio"),
    [("mean", None), ("octave", 0.5), ("none", 1.0), ("-5", 2 ** (-5 / 12))],
)
def test_the_sources_f0_is_transposed_and_sung(model, transpose, ratio):
    source = recording(10_000)
    _, features = synthesis.convert(model, source, {"bass": 1.0}, transpose=transpose)
    own = model.extractor.extract_recordings(model.frozen, [source])[0].features
    voiced = own.f0_hz > 0
    assert voiced.mean() > 0.8
    target_hz = model.card.singers[1].mean_f0_hz
    ratio = ratio or target_hz / own.f0_hz[voiced].mean()
    np.testing.assert_allclose(features.f0_hz, own.f0_hz * ratio, rtol=1e-5)
    np.testing.assert_array_equal(features.loudness_db, own.loudness_db)
    np.testing.assert_array_equal(features.asr_features, own.asr_features)


def test_a_conversion_is_the_singing_of_its_features_in_the_voice(model):
    mix = {"alto": 0.4, "bass": 0.6}
    audio, features = synthesis.convert(model, recording(9999), mix, seed=5)
    voice, _ = synthesis.voice_of(model, mix)
    sung_ = directly(model, features, voice, 5)
    assert np.abs(audio - sung_[:9999]).max() < 1e-4
    other, _ = synthesis.convert(model, recording(9999), {"alto": 1.0}, seed=5)
    assert np.abs(audio - other).max() > 1e-3


def test_a_model_of_one_singer_converts(model):
    generator = dataclasses.replace(model.generator, num_singers=1, embedding_size=0)
    init = jax.jit(lambda rng: steps.init_generator(generator, model.extractor, rng))
    (alto, _) = model.card.singers
    single = dataclasses.replace(
        model,
        generator=generator,
        params=init(jax.random.key(0)),
        card=dataclasses.replace(model.card, singers=(alto,)),
    )
    audio, features = synthesis.convert(single, recording(4000), {"alto": 1.0})
    assert audio.shape == (4000,)
    voiced = features.f0_hz[features.f0_hz > 0]
    assert voiced.mean() == pytest.approx(alto.mean_f0_hz, rel=1e-4)


def test_a_recording_without_any_pitch_is_converted(model):
    hiss = np.random.default_rng(0).normal(0, 0.05, 4000).astype(np.float32)
    audio, features = synthesis.convert(model, hiss, {"alto": 1.0})
    assert not features.f0_hz.any()
    assert audio.shape == (4000,)
    assert isinstance(model.card, schema.Card)
