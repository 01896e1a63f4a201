"""The source-filter generator: its source, its filters, its stream."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fast
from svc_jax import builders, excitation, stft, synthesis
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry
from svc_jax.models.source_filter import SourceFilterGenerator
from svc_jax.models.wavenet import WaveNetGenerator
from svc_jax.types import Features, Noise

SMALL = SourceFilterGenerator(
    num_singers=3, embedding_size=4, channels=12, num_blocks=3, lookahead=2
)
HOP = SMALL.hop_length


def recording(num_frames, seed=0, batch_size=1) -> Features:
    """Features of a song with gliding notes and rests."""
    rng = np.random.default_rng(seed)
    f0_hz = rng.uniform(100, 700, (batch_size, num_frames))
    f0_hz[:, num_frames // 3 : num_frames // 2] = 0
    return Features(
        np.float32(f0_hz),
        np.float32(rng.uniform(-70, -30, (batch_size, num_frames))),
        np.float32(rng.standard_normal((batch_size, num_frames // 2, 5))),
    )


def noise_of(num_frames, hop_length=HOP, seed=0, batch_size=1) -> Noise:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((batch_size, num_frames * hop_length))
    return Noise(
        z=None,
        excitation=np.float32(normal),
        phase=np.float32(rng.uniform(0, 1, batch_size)),
    )


def embed_and_sing(module, features, singer_id, noise):
    return module(features, module.embed(singer_id), noise)


@functools.cache
def random_params(module=SMALL, asr_size=5):
    """Parameters away from the special values they start at."""
    features = recording(8)
    features = features.replace(asr_features=np.zeros((1, 4, asr_size), np.float32))
    init = functools.partial(module.init, method=embed_and_sing)
    noise = noise_of(8, module.hop_length)
    params = jax.jit(init)(jax.random.key(0), features, np.zeros(1, np.int32), noise)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + np.float32(0.1 * rng.standard_normal(x.shape)), params["params"]
    )


@functools.partial(jax.jit, static_argnames=("module", "method"))
def apply(params, *args, module=SMALL, method=None):
    return module.apply({"params": params}, *args, method=method)


VOICE = np.float32([[0.3, -1.0, 0.5, 1.2]])


# Source.


def sung(f0_hz, sample_rate=16_000, hop_length=160, wave=excitation.pulse_train):
    """The source alone through filters that change nothing: float64 [N]."""
    f0_hz = jnp.asarray(f0_hz, jnp.float32)[None]
    following = jnp.concatenate([f0_hz[:, 1:], f0_hz[:, -1:]], axis=1)
    grid = {"sample_rate": sample_rate, "hop_length": hop_length}
    phase = excitation.frame_phase(f0_hz, **grid)
    hops = wave(f0_hz, following, phase, **grid)
    spectra = stft.forward(jnp.pad(hops, ((0, 0), (2, 1), (0, 0))))
    real = jnp.pad(jnp.ones((1, f0_hz.shape[1], 1)), ((0, 0), (1, 2), (0, 0)))
    audio = stft.inverse(jnp.pad(spectra, ((0, 0), (1, 2), (0, 0))), real)
    return np.float64(audio).reshape(-1)


def fundamental_hz(audio, sample_rate, near_hz):
    """The frequency of the strongest partial within a semitone, by its phase."""
    time = np.arange(audio.size) / sample_rate
    window = np.hanning(audio.size)
    grid = near_hz * 2 ** (np.linspace(-1, 1, 2001) / 12)
    power = [abs(np.sum(audio * window * np.exp(-2j * np.pi * f * time))) for f in grid]
    return grid[int(np.argmax(power))]


@pytest.mark.parametrize("wave", [excitation.pulse_train, excitation.sine])
@pytest.mark.parametrize("hz", [40.0, 97.3, 220.0, 663.7, 2000.0])
def test_an_identity_filter_keeps_f0_within_2_cents(wave, hz):
    audio = sung(np.full(100, hz), wave=wave)[1600:-1600]
    found = fundamental_hz(audio, 16_000, hz)
    assert abs(1200 * math.log2(found / hz)) < 2


@pytest.mark.parametrize(("sample_rate", "hop_length"), [(16_000, 160), (44_100, 441)])
@pytest.mark.parametrize("wave", [excitation.pulse_train, excitation.sine])
def test_a_sweep_is_its_harmonics_and_nothing_else(sample_rate, hop_length, wave):
    """Against the sum of cosines in float64: aliases and clicks are below -60 dB."""
    f0_hz = np.geomspace(60, 1900, 300)
    audio = sung(f0_hz, sample_rate, hop_length, wave)
    frames = np.arange(f0_hz.size + 1) * hop_length
    hz = np.interp(np.arange(audio.size), frames[:-1], np.float32(f0_hz))
    turns = np.cumsum(hz) / sample_rate
    ratio = sample_rate / 2 / hz
    expected = np.zeros_like(audio)
    for order in range(
        1, 1 + (int(ratio.max()) if wave is excitation.pulse_train else 1)
    ):
        # The highest harmonic fades in before it is whole.
        weight = np.clip(ratio - order, 0, 1) if wave is excitation.pulse_train else 1.0
        expected += weight * np.cos(2 * np.pi * order * turns)
    expected *= np.sqrt(2 / ratio) if wave is excitation.pulse_train else np.sqrt(2)
    middle = slice(4 * hop_length, -4 * hop_length)
    error = np.mean((audio - expected)[middle] ** 2)
    assert 10 * math.log10(error / np.mean(expected[middle] ** 2)) < -60


@pytest.mark.parametrize("hz", [50.0, 210.0, 999.0])
def test_pulses_have_the_power_of_their_whole_harmonics(hz):
    audio = sung(np.full(200, hz))[1600:-1600]
    ratio = 8000 / hz
    expected = (math.floor(ratio) - 1 + (ratio % 1) ** 2) / ratio
    assert np.mean(audio**2) == pytest.approx(expected, abs=0.01)
    assert 0.8 < expected <= 1


def test_where_there_is_no_pitch_there_are_no_pulses():
    audio = sung(np.zeros(20))
    assert not audio.any()
    # A pitch that no sample rate can carry is no reason for noise either.
    assert np.isfinite(sung(np.full(20, 20_000.0))).all()


# The whole.


def test_lengths_are_exact_and_singers_differ():
    features, noise = recording(24, batch_size=2), noise_of(24, batch_size=2)
    ids = np.asarray([2, 0], np.int32)
    first = apply(random_params(), features, ids, noise, method=embed_and_sing)
    other = apply(random_params(), features, ids[::-1], noise, method=embed_and_sing)
    assert first.shape == (2, 24 * HOP)
    assert np.abs(first - other).max() > 1e-3


def test_silence_in_gives_silence_out():
    features = recording(40)
    features = features.replace(
        f0_hz=0 * features.f0_hz, loudness_db=np.full((1, 40), -120, np.float32)
    )
    audio = apply(random_params(), features, VOICE, noise_of(40))
    assert 20 * math.log10(np.abs(audio).max() + 1e-30) < -60


def test_the_level_follows_the_loudness():
    """10 dB more of all frames is 10 dB more of the source before the network's say."""
    features, noise = recording(40), noise_of(40)
    louder = features.replace(loudness_db=features.loudness_db + 10)
    x = np.float32(np.random.default_rng(0).standard_normal((1, 40, 12)))
    params = random_params()
    pulses, noises = apply(
        params, features.f0_hz, noise, np.ones((1, 40, 1), np.float32), method="source"
    )
    filtered = apply(params, x, pulses, noises, method="filtered")
    assert np.isfinite(np.asarray(filtered)).all()
    levels = [
        np.log(np.abs(apply(params, f, VOICE, noise)[0, 800:-800]).mean())
        for f in (features, louder)
    ]
    assert levels[1] - levels[0] == pytest.approx(math.log(10) / 2, abs=0.5)


def test_an_output_depends_on_no_more_than_is_said():
    num_frames, middle = 160, 80 * HOP
    features, noise = recording(num_frames), noise_of(num_frames)

    @jax.jit
    @jax.grad
    def slope(loudness_db):
        sung = SMALL.apply(
            {"params": random_params()},
            features.replace(loudness_db=loudness_db),
            VOICE,
            noise,
        )
        return sung[0, middle : middle + HOP].sum()

    seen = np.flatnonzero(slope(features.loudness_db)[0])
    assert (80 - seen.min()) * HOP <= SMALL.context_samples()
    assert (seen.max() - 80) * HOP <= SMALL.latency_samples
    # Six frames ahead by three blocks, two more by the overlap of frames.
    assert seen.max() - 80 == 8
    assert SMALL.latency_samples == 8 * HOP


def test_the_bands_of_a_config_are_its_geometrys():
    for variant, bins in (("16k", 321), ("44k", 883)):
        generator = builders.generator(fast.get_config(variant), 3)
        init = functools.partial(generator.init, method=embed_and_sing)
        hop = generator.hop_length
        features = recording(8).replace(asr_features=np.zeros((1, 4, 384), np.float32))
        params = jax.eval_shape(
            init,
            jax.random.key(0),
            features,
            np.zeros(1, np.int32),
            noise_of(8, hop),
        )["params"]
        assert params["filters"]["kernel"].shape == (256, 4 * bins)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert 3e6 < count < 15e6


# Chunks and streams.


def model(generator=SMALL):
    """As much of a bundles.Model as singing needs."""
    return types.SimpleNamespace(
        generator=generator,
        params=random_params(generator),
        extractor=types.SimpleNamespace(
            geometry=FrameGeometry.at(generator.sample_rate, generator.hop_length)
        ),
    )


def one(features: Features) -> Features:
    return jax.tree.map(lambda x: x[0], features)


def span(features: Features, start: int, stop: int) -> Features:
    return Features(
        features.f0_hz[start:stop],
        features.loudness_db[start:stop],
        features.asr_features[start // 2 : stop // 2],
    )


@pytest.mark.parametrize("num_frames", [2, 20, 26, 60, 200])
def test_chunks_are_the_whole(monkeypatch, num_frames):
    monkeypatch.setattr(synthesis, "CHUNK_SAMPLES", 10 * HOP)
    features = one(recording(num_frames, seed=4))
    chunked = synthesis.synthesize(model(), features, VOICE, seed=3)
    _, normal = excitation.block_noise(jax.random.key(3), num_frames * HOP)
    noise = Noise(None, normal[None], np.zeros(1, np.float32))
    whole = apply(random_params(), recording(num_frames, seed=4), VOICE, noise)[0]
    assert chunked.shape == whole.shape
    # float32 turns of a phase carried for seconds: the pulses' highest harmonics.
    assert np.abs(chunked - whole).max() < 1e-4 * max(1, np.abs(whole).max())


@pytest.mark.parametrize("block_frames", [2, 6, 10, 64])
def test_a_stream_is_the_whole_after_its_latency(block_frames):
    features = one(recording(130, seed=5))
    whole = synthesis.synthesize(model(), features, VOICE, seed=3)
    blocks = [
        span(features, start, min(start + block_frames, 130))
        for start in range(0, 130, block_frames)
    ]
    heard = []
    for audio in synthesis.stream(model(), VOICE, blocks, seed=3):
        heard.append(audio)
        # Never more than what came in, less the latency, until the end.
        if len(heard) < len(blocks):
            assert sum(map(len, heard)) == max(
                0, len(heard) * block_frames * HOP - SMALL.latency_samples
            )
    streamed = np.concatenate(heard)
    assert streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() < 1e-5
    assert np.abs(whole).max() > 1e-2


def test_a_stream_of_nothing_is_nothing():
    assert list(synthesis.stream(model(), VOICE, [])) == []


def test_the_paper_generator_does_not_stream():
    wavenet = types.SimpleNamespace(
        generator=WaveNetGenerator(num_singers=2),
        extractor=types.SimpleNamespace(geometry=FrameGeometry()),
    )
    with pytest.raises(UserError, match=r"configs/fast\.py"):
        list(synthesis.stream(wavenet, VOICE, [one(recording(4))]))
