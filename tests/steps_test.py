"""The objective (method.md, sections 3 and 4): who is sung, what learns, what does not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from svc_jax import losses, steps
from svc_jax.features import FeatureExtractor, FrozenParams
from svc_jax.geometry import FrameGeometry
from svc_jax.models.crepe import Crepe
from svc_jax.models.discriminators import MultiDiscriminator, WaveNetDiscriminator
from svc_jax.models.source_filter import SourceFilterGenerator
from svc_jax.models.wav2letter import Wav2Letter
from svc_jax.models.wavenet import WaveNetGenerator
from svc_jax.types import Batch, Guard, TrainState

NUM_SINGERS = 5
BATCH_SIZE = 3
SINGERS = np.asarray([1, 1, 3], np.int32)
GEOMETRY = FrameGeometry(segment_samples=3200)
EXTRACTOR = FeatureExtractor(
    GEOMETRY, Crepe("tiny"), Wav2Letter(6, 8, 5, kernels=(6, 3), wide_kernel=4)
)
NETWORKS = steps.Networks(
    WaveNetGenerator(
        NUM_SINGERS,
        embedding_size=6,
        channels=4,
        gate_channels=8,
        skip_channels=4,
        dilations=(1, 2),
        context_channels=4,
        context_gate_channels=8,
        loudness_dilations=(1,),
        asr_dilations=(1,),
        sine_dilations=(1,),
    ),
    WaveNetDiscriminator(4, 3, (1, 2, 1)),
    EXTRACTOR,
)
OBJECTIVE = steps.Objective(
    {
        "spectral": 1.0,
        "adversarial": 2.5,
        "matching": 0.0,
        "pitch": 1.0,
        "content": 1.0,
    },
    (512, 128),
    "hidden",
    0.999,
)
# Plain gradient descent at rate 1: what the parameters lose is their gradient.
DESCENT = steps.Optimizers(
    optax.identity(), optax.identity(), lambda _: 1.0, lambda _: 1.0
)
PHASES = {
    "aligned": steps.Phase(),
    "adversarial": steps.Phase(adversarial=True),
    "unaligned": steps.Phase(adversarial=True, unaligned=True),
    "mixup": steps.Phase(adversarial=True, mixup=True),
    "all": steps.Phase(adversarial=True, unaligned=True, mixup=True),
}
RNG = jax.random.key(3)


@pytest.fixture(scope="module")
def frozen() -> FrozenParams:
    crepe = jax.jit(EXTRACTOR.crepe.init)(jax.random.key(1), jnp.zeros((1, 1024)))
    reader = jax.jit(EXTRACTOR.wav2letter.init)(
        jax.random.key(2), jnp.zeros((1, 20, 39))
    )
    return FrozenParams(crepe["params"], reader["params"])


@pytest.fixture(scope="module")
def batch(frozen) -> Batch:
    noise = np.random.default_rng(0)
    time = np.arange(GEOMETRY.segment_samples) / GEOMETRY.sample_rate
    hz = np.asarray([150.0, 220.0, 330.0])[:, None]
    audio = 0.2 * np.sin(2 * np.pi * hz * time) + 0.01 * noise.standard_normal(
        time.size
    )
    audio = audio.astype(np.float32)
    extract = jax.jit(functools.partial(EXTRACTOR.extract, viterbi=False))
    extracted = extract(frozen, audio)
    features = extracted.features
    f0_hz = np.repeat(hz, GEOMETRY.segment_frames, axis=1).astype(np.float32)
    return Batch(
        audio,
        f0_hz,
        features.loudness_db,
        features.asr_features,
        extracted.asr_stats,
        SINGERS,
    )


@pytest.fixture(scope="module")
def state():
    init = functools.partial(steps.init_state, NETWORKS, DESCENT)
    return jax.jit(init)(jax.random.key(0))


@pytest.fixture(scope="module")
def scales(frozen, batch):
    measure = functools.partial(steps.feature_scales, NETWORKS, OBJECTIVE)
    return jax.device_get(jax.jit(measure)(frozen, batch))


@pytest.fixture(scope="module")
def step_results(state, batch, frozen, scales):
    """(new state, metrics) after one step of each phase."""

    @functools.cache
    def run(name):
        step = functools.partial(
            steps.train_step, NETWORKS, DESCENT, OBJECTIVE, PHASES[name]
        )
        return jax.device_get(jax.jit(step)(state, batch, frozen, scales, RNG))

    return run


def gradient_rows(before, after) -> set[int]:
    """Singers whose embedding a step of plain descent moved."""
    moved = np.asarray(
        before.generator.params["singers"]["embedding"]
        - after.generator.params["singers"]["embedding"]
    )
    return set(np.flatnonzero(np.abs(moved).max(axis=1)))


def drawn_others() -> set[int]:
    """The voices that the unaligned pass of step 0 draws."""
    _, rng_other, _ = jax.random.split(jax.random.fold_in(RNG, 0), 3)
    return set(np.asarray(steps.other_singers(rng_other, SINGERS, NUM_SINGERS)))


@pytest.mark.parametrize("phase", ["aligned", "adversarial", "mixup"])
def test_only_the_sources_own_voices_learn(state, step_results, phase):
    # In mixup another voice takes part in the virtual singer, without a gradient.
    assert gradient_rows(state, step_results(phase)[0]) == set(SINGERS)


def test_unaligned_voices_learn_too(state, step_results):
    others = drawn_others()
    assert others - set(SINGERS)
    assert gradient_rows(state, step_results("unaligned")[0]) == set(SINGERS) | others


def test_another_singer_is_never_oneself_and_each_is_as_likely():
    singer_id = jnp.repeat(jnp.arange(NUM_SINGERS), 4000)
    others = np.asarray(
        steps.other_singers(jax.random.key(0), singer_id, NUM_SINGERS)
    ).reshape(NUM_SINGERS, -1)
    for singer, drawn in enumerate(others):
        counts = np.bincount(drawn, minlength=NUM_SINGERS)
        assert counts[singer] == 0
        np.testing.assert_allclose(np.delete(counts, singer), 1000, atol=120)


def test_no_gradient_reaches_the_frozen_networks(batch, frozen, scales):
    def total(frozen):
        fake = {"aligned": 0.5 * batch.audio, "unaligned": 0.9 * batch.audio}
        terms = steps.fidelity_terms(NETWORKS, OBJECTIVE, frozen, scales, batch, fake)
        return sum(terms.values())

    gradients = jax.jit(jax.grad(total))(frozen)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_back_translation_has_no_gradient(state, batch, frozen):
    def total(params):
        features = steps.back_translated(NETWORKS, params, frozen, batch, RNG)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(features))

    gradients = jax.jit(jax.grad(total))(state.generator.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_back_translation_is_of_the_batchs_own_pitch_and_level_grid(
    state, batch, frozen
):
    run = jax.jit(functools.partial(steps.back_translated, NETWORKS))
    features = run(state.generator.params, frozen, batch, RNG)
    assert jax.tree.map(jnp.shape, features) == jax.tree.map(jnp.shape, batch.features)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(features))


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_gain_is_felt_by_spectra_and_content_not_by_pitch(batch, frozen, scales, gain):
    terms = jax.jit(functools.partial(steps.fidelity_terms, NETWORKS, OBJECTIVE))(
        frozen, scales, batch, {"aligned": gain * batch.audio}
    )
    assert terms["spectral"] > 0.3
    assert terms["content"] > 0.02
    assert terms["pitch"] < 1e-4


def test_equal_audio_has_no_loss(batch, frozen, scales):
    terms = jax.jit(functools.partial(steps.fidelity_terms, NETWORKS, OBJECTIVE))(
        frozen, scales, batch, {"aligned": batch.audio, "mixup": batch.audio}
    )
    assert set(terms) == {"content", "pitch", "spectral"}
    assert max(map(float, terms.values())) < 1e-6  # two passes, one truth: rounding


def test_unaligned_singing_is_not_compared_with_the_source(batch, frozen, scales):
    run = jax.jit(functools.partial(steps.fidelity_terms, NETWORKS, OBJECTIVE))
    aligned = {"aligned": batch.audio}
    other = run(frozen, scales, batch, {**aligned, "unaligned": 0.1 * batch.audio})
    assert other["spectral"] == 0.0
    assert other["content"] > 0.0


def test_scales_are_the_mean_distance_of_different_segments(batch, frozen, scales):
    hear = functools.partial(steps.perceptual_features, NETWORKS, OBJECTIVE)
    heard = jax.device_get(jax.jit(hear)(frozen, batch.audio, batch.asr_stats))
    for name, value in heard.items():
        pairs = [np.abs(value[i] - value[i - 1]) for i in range(BATCH_SIZE)]
        assert scales[name] == pytest.approx(np.mean(pairs), rel=1e-5)


@pytest.mark.parametrize(
    ("phase", "counts"),
    [
        ("aligned", {"spectral": 1, "pitch": 1, "content": 1}),
        ("adversarial", {"spectral": 1, "pitch": 1, "content": 1, "adversarial": 1}),
        ("all", {"spectral": 2, "pitch": 3, "content": 3, "adversarial": 3}),
    ],
)
def test_the_objective_is_the_weighted_sum_over_its_passes(step_results, phase, counts):
    _, metrics = step_results(phase)
    found = {k.removeprefix("loss/") for k in metrics if k.startswith("loss/")}
    assert found - {"generator", "discriminator"} == set(counts)
    total = sum(
        OBJECTIVE.weights[name] * count * metrics[f"loss/{name}"]
        for name, count in counts.items()
    )
    assert metrics["loss/generator"] == pytest.approx(total, rel=1e-5)


def test_matching_is_asked_of_the_passes_with_a_truth(state, batch, frozen, scales):
    weights = {**OBJECTIVE.weights, "matching": 3.0}
    objective = dataclasses.replace(OBJECTIVE, weights=weights)
    step = functools.partial(
        steps.train_step, NETWORKS, DESCENT, objective, PHASES["all"]
    )
    after, metrics = jax.device_get(jax.jit(step)(state, batch, frozen, scales, RNG))
    counts = {"spectral": 2, "matching": 2, "pitch": 3, "content": 3, "adversarial": 3}
    total = sum(weights[k] * n * metrics[f"loss/{k}"] for k, n in counts.items())
    assert metrics["loss/generator"] == pytest.approx(total, rel=1e-5)

    # The term itself, on audio that is known: the unaligned pass counts for nothing.
    def judge(params, audio):
        return NETWORKS.discriminator.apply({"params": params}, audio)

    params = after.discriminator.params
    names = ("aligned", "unaligned", "mixup")
    rng = np.random.default_rng(5)
    aligned, unaligned, mixup = (
        batch.audio + rng.normal(0, 0.1, batch.audio.shape).astype(np.float32)
        for _ in names
    )

    @jax.jit
    def term(*passes):
        judges = judge(params, steps.side_by_side(passes))
        return steps.matching_term(judge, params, batch, names, judges)

    found = float(term(aligned, unaligned, mixup))
    assert float(term(aligned, 9 * unaligned, mixup)) == pytest.approx(found)
    assert float(term(batch.audio, unaligned, batch.audio)) < 1e-6
    assert float(term(aligned, unaligned, batch.audio)) < found
    real = judge(params, batch.audio)
    expected = sum(
        np.mean(
            [
                np.abs(np.float64(r) - f).mean() / np.abs(r).mean()
                for r, f in zip(real[0][:-1], judge(params, x)[0][:-1], strict=True)
            ]
        )
        for x in (aligned, mixup)
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_parts_of_a_batch_learn_what_the_whole_does(
    state, batch, frozen, scales, step_results
):
    whole, whole_metrics = step_results("all")
    step = functools.partial(
        steps.train_step, NETWORKS, DESCENT, OBJECTIVE, PHASES["all"], accumulate=3
    )
    parts, metrics = jax.device_get(jax.jit(step)(state, batch, frozen, scales, RNG))
    for name, value in whole_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    for network in ("generator", "discriminator"):
        before, one, other = (
            getattr(s, network).params for s in (jax.device_get(state), whole, parts)
        )
        largest = max(
            np.abs(old - new).max()
            for old, new in zip(*map(jax.tree.leaves, (before, one)), strict=True)
        )
        jax.tree.map(
            lambda new, found, atol=1e-4 * largest: np.testing.assert_allclose(
                found, new, rtol=1e-3, atol=atol
            ),
            one,
            other,
        )


def test_a_part_holds_every_pass_of_its_examples():
    passes = jnp.arange(4), jnp.arange(10, 14)
    stacked = steps.side_by_side(passes)
    assert stacked.tolist() == [0, 10, 1, 11, 2, 12, 3, 13]
    for there, back in zip(passes, steps.apart(stacked, 2), strict=True):
        np.testing.assert_array_equal(back, there)
    parts = steps.parts_of(stacked, 2, 2)
    assert parts.tolist() == [[0, 10, 2, 12], [1, 11, 3, 13]]


@pytest.mark.parametrize("generator", ["wavenet", "source_filter"])
@pytest.mark.parametrize("discriminator", ["wavenet", "multi"])
def test_any_generator_is_judged_by_any_discriminator(
    batch, frozen, scales, generator, discriminator
):
    fast = SourceFilterGenerator(
        NUM_SINGERS, embedding_size=6, hop_length=64, channels=8, num_blocks=2
    )
    judges = MultiDiscriminator((2, 3), (2, 2), (256,), (2, 2))
    networks = steps.Networks(
        fast if generator == "source_filter" else NETWORKS.generator,
        judges if discriminator == "multi" else NETWORKS.discriminator,
        EXTRACTOR,
    )
    weights = {**OBJECTIVE.weights, "matching": 1.0}
    objective = dataclasses.replace(OBJECTIVE, weights=weights)
    init = functools.partial(steps.init_state, networks, DESCENT)
    state = jax.eval_shape(init, jax.random.key(0))
    step = functools.partial(
        steps.train_step, networks, DESCENT, objective, PHASES["all"]
    )
    after, metrics = jax.eval_shape(step, state, batch, frozen, scales, RNG)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {x.shape for x in metrics.values()} == {()}
    assert "loss/matching" in metrics


def test_the_discriminator_rests_in_the_first_phase(state, step_results):
    after, metrics = step_results("aligned")
    jax.tree.map(
        np.testing.assert_array_equal,
        after.discriminator.params,
        jax.device_get(state.discriminator.params),
    )
    assert "loss/discriminator" not in metrics
    assert "loss/discriminator" in step_results("adversarial")[1]


def test_the_discriminator_descends_its_own_loss(state, batch, step_results):
    """Its step against the gradient of the formula, on the audio that G sang."""
    rng_noise, _, _ = jax.random.split(jax.random.fold_in(RNG, 0), 3)

    def loss(params):
        noise = steps.draw_noise(rng_noise, BATCH_SIZE, GEOMETRY.segment_samples)
        voice = steps.embed(NETWORKS, state.generator.params, SINGERS)
        fake = steps.sing(
            NETWORKS, state.generator.params, batch.features, voice, noise
        )
        real_judges, fake_judges = (
            NETWORKS.discriminator.apply({"params": params}, x)
            for x in (batch.audio, fake)
        )
        return losses.discriminator_loss(real_judges, fake_judges)

    gradients = jax.jit(jax.grad(loss))(state.discriminator.params)
    after, _ = step_results("adversarial")
    jax.tree.map(
        lambda old, new, gradient: np.testing.assert_allclose(
            old - new, gradient, rtol=2e-3, atol=2e-5
        ),
        state.discriminator.params,
        after.discriminator.params,
        gradients,
    )


def test_the_running_mean_follows_with_a_short_memory_at_first(state, step_results):
    after, _ = step_results("aligned")
    jax.tree.map(
        lambda old, new, mean: np.testing.assert_allclose(
            mean, 0.1 * old + 0.9 * new, rtol=1e-4, atol=1e-6
        ),
        jax.device_get(state.ema_params),
        after.generator.params,
        after.ema_params,
    )


def test_the_running_mean_has_its_full_memory_later(state, batch, frozen, scales):
    step = functools.partial(
        steps.train_step, NETWORKS, DESCENT, OBJECTIVE, PHASES["aligned"]
    )
    late = state.replace(step=jnp.asarray(1_000_000))
    after, _ = jax.jit(step)(late, batch, frozen, scales, RNG)
    jax.tree.map(
        lambda old, new, mean: np.testing.assert_allclose(
            mean, 0.999 * old + 0.001 * new, rtol=1e-4, atol=1e-6
        ),
        jax.device_get(state.ema_params),
        jax.device_get(after.generator.params),
        jax.device_get(after.ema_params),
    )


def test_an_update_is_measured_against_the_weights(state, step_results):
    """Of plain descent at rate 1 it is the gradient."""
    _, metrics = step_results("adversarial")
    for name in ("generator", "discriminator"):
        leaves = jax.tree.leaves(getattr(state, name).params)
        size = np.sqrt(
            sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves)
        )
        assert metrics[f"update_ratio/{name}"] == pytest.approx(
            metrics[f"grad_norm/{name}"] / size, rel=1e-3
        )


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    state, batch, frozen, scales
):
    """Bit for bit, optimisers and running mean too; the next one is made again."""
    learning = dataclasses.replace(
        DESCENT,
        generator=optax.scale_by_radam(),
        generator_rate=lambda _: 1e-3,
    )
    init = functools.partial(steps.init_state, NETWORKS, learning)
    fresh = jax.jit(init)(jax.random.key(0))
    step = jax.jit(
        functools.partial(
            steps.train_step, NETWORKS, learning, OBJECTIVE, PHASES["aligned"]
        )
    )
    audio = batch.audio.copy()
    audio[1, 7] = np.nan
    poisoned = batch.replace(audio=audio)
    before, _ = jax.device_get(step(fresh, batch, frozen, scales, RNG))
    after, metrics = jax.device_get(step(before, poisoned, frozen, scales, RNG))
    for name in ("generator", "discriminator", "ema_params"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
        )
    assert int(after.step) == 2
    counted = dict(zip(steps.GUARDED, after.guard.skipped.tolist(), strict=True))
    assert counted["loss/spectral"] == counted["grad_norm/generator"] == 1
    assert counted["loss/adversarial"] == counted["loss/discriminator"] == 0
    assert metrics["skipped/loss/spectral"] == metrics["guard/in_a_row"] == 1
    healed, metrics = jax.device_get(step(after, batch, frozen, scales, RNG))
    assert metrics["guard/in_a_row"] == 0
    assert metrics["skipped/loss/spectral"] == 1
    moved = jax.tree.map(
        np.array_equal, healed.generator.params, after.generator.params
    )
    assert not all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", steps.GUARDED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_any_metric_that_is_guarded_skips_by_its_name(name, value):
    guard = Guard(np.arange(8, dtype=np.int32), np.int32(2), np.int32(1))
    old = TrainState(np.int32(5), 1.0, 2.0, 3.0, guard)
    new = TrainState(np.int32(6), 10.0, 20.0, 30.0, guard)
    kept = steps.guarded(old, new, {"loss/spectral": 1.0, name: value})
    assert (kept.step, kept.generator, kept.ema_params) == (6, 1.0, 3.0)
    counted = kept.guard.skipped - old.guard.skipped
    assert counted.tolist() == [int(other == name) for other in steps.GUARDED]
    assert (kept.guard.in_a_row, kept.guard.rollbacks) == (3, 1)
    taken = steps.guarded(old, new, {"loss/spectral": 1.0, "loss/pitch": 2.0})
    assert (taken.step, taken.generator, taken.ema_params) == (6, 10.0, 30.0)
    assert (taken.guard.in_a_row, taken.guard.rollbacks) == (0, 1)


@pytest.mark.parametrize(
    ("step", "num_singers", "expected"),
    [
        (0, 3, steps.Phase()),
        (99_999, 3, steps.Phase()),
        (100_000, 3, steps.Phase(True, True, False)),
        (266_666, 3, steps.Phase(True, True, False)),
        (266_667, 3, steps.Phase(True, True, True)),
        (399_999, 3, steps.Phase(True, True, True)),
        (300_000, 1, steps.Phase(True, False, False)),
    ],
)
def test_phases_follow_the_step(step, num_singers, expected):
    found = steps.phase_at(
        step, adversarial_from=100_000, mixup_from=266_667, num_singers=num_singers
    )
    assert found == expected
