"""The paper's generator: its formula in float64, its sizes and how far it sees."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax.models.wavenet import WaveNet, WaveNetGenerator
from svc_jax.types import Features, Noise

SMALL = WaveNetGenerator(
    num_singers=3,
    embedding_size=5,
    hop_length=8,
    channels=6,
    gate_channels=10,
    skip_channels=7,
    dilations=(1, 2, 4) * 2,
    context_channels=4,
    context_gate_channels=6,
    loudness_dilations=(1, 2),
    asr_dilations=(1, 3),
    sine_dilations=(1, 2, 4),
    loudness_factors=(4, 2),
    asr_factors=(4, 2, 2),
)
SINGERS = np.array([2, 0])


def inputs(generator, num_frames, num_asr_frames, asr_size=3, seed=0):
    """Features and noise of two recordings, half of each unvoiced."""
    rng = np.random.default_rng(seed)
    f0_hz = rng.uniform(100, 900, (2, num_frames))
    f0_hz[:, num_frames // 3 : -num_frames // 4] = 0
    shape = (2, num_frames * generator.hop_length)
    features = Features(
        f0_hz=np.float32(f0_hz),
        loudness_db=np.float32(rng.uniform(-120, 0, (2, num_frames))),
        asr_features=np.float32(rng.standard_normal((2, num_asr_frames, asr_size))),
    )
    noise = Noise(
        z=np.float32(rng.uniform(0, 1, shape)),
        excitation=np.float32(rng.standard_normal(shape)),
        phase=np.float32([0.3, -0.2]),
    )
    return features, noise


def embed_and_sing(module, singer_id, features, noise):
    return module(features, module.embed(singer_id), noise)


def random_params(init, *args):
    """Parameters away from the special values they start at, of the shapes of init's."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        kind = path[-1].key.rstrip("0123456789")
        centre = {"scale": 1.0, "filter": 1 / leaf.size}.get(kind, 0.0)
        spread = {"direction": 1.0, "embedding": 1.0}.get(kind, 0.1)
        return np.float32(centre + spread * rng.standard_normal(leaf.shape))

    shapes = jax.eval_shape(init, jax.random.key(0), *args)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def randomised(generator, features, noise):
    """`random_params` of a generator."""
    init = functools.partial(generator.init, method=embed_and_sing)
    return random_params(init, SINGERS, features, noise)


@functools.cache
def sing(generator):
    """Compiled: (params, singer_id, features, noise) -> audio."""

    def apply(params, *args):
        return generator.apply({"params": params}, *args, method=embed_and_sing)

    return jax.jit(apply)


# The formula.


def float64_conv(params, x, dilation=1):
    """Weight-normalised, zeros outside: [N, C] -> [N, C']."""
    direction = params["direction"]
    kernel = direction * params["scale"] / np.linalg.norm(direction, axis=(0, 1))
    half = dilation * (len(kernel) // 2)
    padded = np.pad(x, ((half, half), (0, 0)))
    taps = [padded[k * dilation :][: len(x)] for k in range(len(kernel))]
    return np.einsum("knc,kcd->nd", taps, kernel) + params.get("bias", 0)


def float64_gate(params, x, dilation, condition=0.0):
    heard = float64_conv(params["dilated"], x, dilation) + condition
    half = heard.shape[1] // 2
    return np.tanh(heard[:, :half]) / (1 + np.exp(-heard[:, half:]))


def unstacked(params, num_layers):
    """Of every layer its own parameters: cycles are stacked along the first axis."""
    length = len(params)
    return [
        jax.tree.map(lambda x, k=k: x[k // length], params[f"layer{k % length}"])
        for k in range(num_layers)
    ]


def float64_context(params, x, dilations):
    x = float64_conv(params["input"], x)
    layers = unstacked(params["layers"], len(dilations))
    for layer, dilation in zip(layers, dilations, strict=True):
        gated = float64_gate(layer["gate"], x, dilation)
        x = x + float64_conv(layer["residual"], gated)
    return x


def float64_upsample(params, x, factors):
    for index, factor in enumerate(factors):
        taps = params[f"filter{index}"]
        x = np.pad(np.repeat(x, factor, axis=0), ((factor, factor), (0, 0)))
        x = np.stack([np.correlate(row, taps, "valid") for row in x.T], axis=1)
    return x


def float64_excitation(f0_hz, normal, turns, hop_length, sample_rate=16_000):
    """method.md, section 1: [T] -> [T * hop_length, 1]."""
    position = np.arange(f0_hz.size * hop_length) / hop_length
    left = f0_hz[position.astype(int)]
    right = np.append(f0_hz, f0_hz[-1])[position.astype(int) + 1]
    between = np.interp(position, np.arange(f0_hz.size), f0_hz)
    nearest = np.where(position % 1 < 0.5, left, right)
    f0_samples = np.where((left > 0) & (right > 0), between, nearest)
    noise = 0.003 * normal
    phase = 2 * np.pi * (np.cumsum(f0_samples / sample_rate) + turns)
    voiced = 0.1 * np.sin(phase) + noise
    return np.where(f0_samples > 0, voiced, 0.1 / (3 * 0.003) * noise)[:, None]


def float64_generator(module, params, features, voice, noise):
    """method.md, section 2, of one recording: [N]."""
    sine = float64_excitation(
        features.f0_hz, noise.excitation, noise.phase, module.hop_length
    )
    loudness = features.loudness_db[:, None] / 120 + 1
    contexts = []
    for name, x, factors in (
        ("loudness", loudness, module.loudness_factors),
        ("asr", features.asr_features, module.asr_factors),
        ("sine", sine, ()),
    ):
        dilations = getattr(module, f"{name}_dilations")
        x = float64_context(params[f"{name}_context"], x, dilations)
        contexts.append(float64_upsample(params.get(f"{name}_upsample"), x, factors))
    condition = np.concatenate(
        [*contexts, np.broadcast_to(voice, (noise.z.size, voice.size))], axis=1
    )
    wavenet = params["wavenet"]
    x, skips = float64_conv(wavenet["input"], noise.z[:, None]), 0
    layers = unstacked(wavenet["layers"], len(module.dilations))
    for layer, dilation in zip(layers, module.dilations, strict=True):
        told = float64_conv(layer["condition"], condition)
        gated = float64_gate(layer["gate"], x, dilation, told)
        skips = skips + float64_conv(layer["skip"], gated)
        residual = float64_conv(layer["residual"], gated)
        x = (residual + x) * np.sqrt(0.5)
    x = np.maximum(skips * np.sqrt(1 / len(module.dilations)), 0)
    x = np.maximum(float64_conv(wavenet["output0"], x), 0)
    return float64_conv(wavenet["output1"], x)[:, 0]


@pytest.mark.parametrize("num_singers", [1, 3])
def test_the_generator_computes_what_the_method_says(num_singers):
    module = SMALL.clone(num_singers=num_singers)
    features, noise = inputs(module, 12, 6)
    params = randomised(module, features, noise)
    assert ("singers" in params) == (num_singers > 1)
    audio = sing(module)(params, SINGERS, features, noise)
    wide = jax.tree.map(np.float64, (params, features, noise))
    table = wide[0]["singers"]["embedding"] if num_singers > 1 else np.zeros((3, 0))
    for row, singer in enumerate(SINGERS):
        of_row = jax.tree.map(lambda x, row=row: x[row], wide[1:])
        expected = float64_generator(
            module, wide[0], of_row[0], table[singer], of_row[1]
        )
        assert np.std(expected) > 0.02
        np.testing.assert_allclose(audio[row], expected, atol=1e-5)


def test_harmonics_are_more_channels_of_the_sine_alone():
    features, noise = inputs(SMALL, 12, 6)
    plain, rich = (
        jax.tree.map(np.shape, randomised(module, features, noise))
        for module in (SMALL, SMALL.clone(num_harmonics=2))
    )
    assert plain["sine_context"]["input"]["direction"] == (1, 1, 4)
    assert rich["sine_context"]["input"]["direction"] == (1, 3, 4)
    rich["sine_context"]["input"]["direction"] = (1, 1, 4)
    assert rich == plain


# Singers.


def test_a_voice_is_a_row_of_the_table():
    features, noise = inputs(SMALL, 12, 6)
    params = randomised(SMALL, features, noise)
    table = params["singers"]["embedding"]
    assert table.shape == (3, 5)
    voices = SMALL.apply({"params": params}, SINGERS, method="embed")
    np.testing.assert_array_equal(voices, table[SINGERS])


def test_who_sings_is_heard_and_only_in_their_own_recording():
    features, noise = inputs(SMALL, 12, 6)
    params = randomised(SMALL, features, noise)
    before, after = (
        np.asarray(sing(SMALL)(params, np.array(who), features, noise))
        for who in ([2, 0], [1, 0])
    )
    assert np.abs(before[0] - after[0]).max() > 1e-3
    np.testing.assert_array_equal(before[1], after[1])


# Sizes.


def default_shapes(num_singers, num_frames=5):
    generator = WaveNetGenerator(num_singers)
    features = Features(
        f0_hz=jnp.zeros((2, num_frames)),
        loudness_db=jnp.zeros((2, num_frames)),
        asr_features=jnp.zeros((2, num_frames // 5, 2000)),
    )
    noise = Noise(
        jnp.zeros((2, 64 * num_frames)), jnp.zeros((2, 64 * num_frames)), jnp.zeros(2)
    )

    init = functools.partial(generator.init_with_output, method=embed_and_sing)
    return jax.eval_shape(init, jax.random.key(0), SINGERS, features, noise)


@pytest.mark.parametrize("num_frames", [5, 250])
def test_audio_has_one_hop_per_frame(num_frames):
    audio, _ = default_shapes(4, num_frames)
    assert (audio.shape, audio.dtype) == ((2, 64 * num_frames), jnp.float32)


@pytest.mark.parametrize(("num_singers", "told"), [(1, 192), (4, 256)])
def test_the_default_is_the_papers_network(num_singers, told):
    _, variables = default_shapes(num_singers)

    def conv(width, before, after, bias=True):
        shapes = {"direction": (width, before, after), "scale": (after,)}
        return {**shapes, "bias": (after,)} if bias else shapes

    layer = {"gate": {"dilated": conv(3, 64, 128)}, "residual": conv(1, 64, 64)}
    wavenet_layer = {
        **layer,
        "condition": conv(1, told, 128, bias=False),
        "skip": conv(1, 64, 64),
    }

    def stack(features, length, cycles, layer=layer):
        layers = {
            f"layer{k}": jax.tree.map(
                lambda shape: (cycles, *shape),
                layer,
                is_leaf=lambda x: isinstance(x, tuple),
            )
            for k in range(length)
        }
        return {"input": conv(1, features, 64), "layers": layers}

    wavenet = {
        **stack(1, 10, 3, wavenet_layer),
        "output0": conv(1, 64, 64),
        "output1": conv(1, 64, 1),
    }
    expected = {
        "loudness_context": stack(1, 4, 4),
        "asr_context": stack(2000, 2, 8),
        "sine_context": stack(1, 8, 2),
        "loudness_upsample": {f"filter{k}": (9,) for k in range(3)},
        "asr_upsample": {f"filter{k}": (w,) for k, w in enumerate((9, 9, 9, 11))},
        "wavenet": wavenet,
    }
    if num_singers > 1:
        expected["singers"] = {"embedding": (num_singers, 64)}
    assert jax.tree.map(lambda x: x.shape, variables["params"]) == expected


def test_every_bias_starts_at_zero_and_every_scale_at_its_directions_norm():
    init = functools.partial(SMALL.init, method=embed_and_sing)
    params = jax.jit(init)(jax.random.key(0), SINGERS, *inputs(SMALL, 12, 6))["params"]
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    scales = [name for name in flat if name.endswith("/scale")]
    assert len(scales) == 4 * 3 + 3 + 2 * (2 + 2 + 3) + 3
    for name in scales:
        direction = flat[name.replace("scale", "direction")]
        norm = np.linalg.norm(np.float64(direction), axis=(-3, -2))
        np.testing.assert_allclose(flat[name], norm, rtol=1e-6, err_msg=name)
    assert not any(np.any(flat[name]) for name in flat if name.endswith("/bias"))


# How far it sees.


def test_one_sample_sees_6139_of_the_noise():
    dilations = [2**k for k in range(10)] * 3
    module = WaveNet(2, 4, 16, 3, dilations)  # so many that not all ReLUs are shut
    z = np.random.default_rng(0).uniform(0, 1, (1, 6401, 1)).astype(np.float32)
    condition, voice = np.zeros((1, 6401, 1), np.float32), np.zeros((1, 0), np.float32)
    params = random_params(module.init, z, condition, voice)

    @jax.jit
    @jax.grad
    def slope(z):
        return module.apply({"params": params}, z, condition, voice)[0, 3200]

    seen = np.flatnonzero(slope(z))
    assert (seen.min(), seen.max()) == (3200 - 3069, 3200 + 3069)
    assert seen.size == 6139


FAR_SIGHTED = {
    "loudness": {"loudness_dilations": (1, 2, 4)},
    "asr": {"asr_dilations": (2, 1, 2)},
    "sine": {"sine_dilations": (1, 2, 4, 8, 16)},
    "all of them alike": {},
}


@pytest.mark.parametrize("fields", FAR_SIGHTED.values(), ids=FAR_SIGHTED)
def test_no_input_beyond_the_stated_context_is_seen(fields):
    module = SMALL.clone(**fields)
    features, noise = inputs(module, 62, 31)
    # The phase of a sine sums up all of f0 before it; that is not asked here.
    features = features.replace(f0_hz=np.zeros_like(features.f0_hz))
    params = randomised(module, features, noise)
    num_samples = noise.z.shape[1]

    @jax.jit
    @functools.partial(jax.grad, argnums=(1, 2))
    def slope(sample, features, noise):
        return sing(module)(params, SINGERS, features, noise)[0, sample]

    def reach_of(sample, slopes) -> int:
        reach = 0
        for sloped in slopes:
            along = np.abs(np.reshape(sloped[0], (sloped.shape[1], -1))).sum(1)
            hop = num_samples // along.size
            seen = np.flatnonzero(along)
            # A frame tells of the samples from its own to the next one's.
            first, last = seen.min() * hop, seen.max() * hop + hop - 1
            reach = max(
                reach, sample - last, sample - first, last - sample, first - sample
            )
        return reach

    reach = audio_reach = 0
    for sample in range(num_samples // 2 - 8, num_samples // 2 + 9):
        by_features, by_noise = slope(sample, features, noise)
        drawn = by_noise.z, by_noise.excitation
        audio_reach = max(audio_reach, reach_of(sample, drawn))
        told = by_features.loudness_db, by_features.asr_features
        reach = max(reach, reach_of(sample, told))
    frame = math.prod(module.asr_factors)
    assert 0 <= module.context_samples() - max(reach, audio_reach) < 2 * frame
    assert audio_reach <= module.audio_context_samples()
    # The rest is of the filters that follow the context stacks.
    assert module.audio_context_samples() - audio_reach < 3 * frame


def test_the_defaults_context_covers_both_halves_of_the_field_of_view():
    context = WaveNetGenerator(1).context_samples()
    assert context >= 3069 + 24 * 320  # the WaveNet's, then that of the ASR's stack
    assert context < 3069 + 24 * 320 + 1000
    audio_context = WaveNetGenerator(1).audio_context_samples()
    assert audio_context >= 3069 + 510  # the sine's stack
    assert audio_context < 3069 + 1000


@pytest.mark.parametrize("first", [6, 10])
def test_a_part_sung_with_its_context_is_a_part_of_the_whole(first):
    features, noise = inputs(SMALL, 80, 40)
    # 500 Hz at 16 kHz is 32 samples a turn: each part begins with a whole turn.
    f0_hz = np.full((2, 80), 500, np.float32)
    f0_hz[:, 40:45] = 0
    features = features.replace(f0_hz=f0_hz)
    params = randomised(SMALL, features, noise)
    whole = sing(SMALL)(params, SINGERS, features, noise)

    last = first + 22  # in frames of 16 samples, as ASR's
    frames, samples = slice(2 * first, 2 * last), slice(16 * first, 16 * last)
    part = sing(SMALL)(
        params,
        SINGERS,
        Features(
            features.f0_hz[:, frames],
            features.loudness_db[:, frames],
            features.asr_features[:, first:last],
        ),
        Noise(noise.z[:, samples], noise.excitation[:, samples], noise.phase),
    )
    context = SMALL.context_samples()
    difference = np.abs(part - whole[:, samples])
    inside = difference[:, context:-context]
    assert inside.shape[1] > 100
    assert inside.max() < 1e-6
    assert difference.max() > 1e-4


@pytest.mark.parametrize("first", [0, 20, 58])
def test_audio_within_longer_features_is_a_part_of_the_whole(first):
    features, noise = inputs(SMALL, 160, 80)
    f0_hz = np.full((2, 160), 500, np.float32)  # 32 samples a turn, as above
    features = features.replace(f0_hz=f0_hz)
    params = randomised(SMALL, features, noise)
    whole = sing(SMALL)(params, SINGERS, features, noise)
    last = first + 22  # in frames of 16 samples, as ASR's
    frames, samples = slice(2 * first, 2 * last), slice(16 * first, 16 * last)
    part = jax.jit(SMALL.apply)(
        {"params": params},
        features.replace(f0_hz=f0_hz[:, frames]),
        SMALL.apply({"params": params}, SINGERS, method="embed"),
        Noise(noise.z[:, samples], noise.excitation[:, samples], noise.phase),
        16 * first,
    )
    context = SMALL.audio_context_samples()
    assert context < SMALL.context_samples()
    difference = np.abs(part - whole[:, samples])
    inside = difference[:, 0 if first == 0 else context : -context]
    assert inside.shape[1] > 100
    assert inside.max() < 1e-6
    assert difference.max() > 1e-4
