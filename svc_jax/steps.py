"""Training steps: pure functions (state, batch, ...) -> (state, metrics).

The objective is method.md, sections 3 and 4. Every pass of the generator has a source,
whose features it sings, and a voice:

  aligned    the source's own singer: every loss;
  unaligned  another singer, drawn uniformly: no L_recon, for there is no truth;
  mixup      back-translation (arXiv 1904.06590): the source is first sung by a virtual
             singer, a mixture of two voices; from that singing's features the source's
             own singer must restore the source: every loss.

The passes of a step are run at once, those of an example side by side in the batch, so
that a batch that is split over devices stays where it is.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from svc_jax import losses, optimizers
from svc_jax.features import FeatureExtractor, FrozenParams
from svc_jax.types import Batch, Features, Guard, NetworkState, Noise, TrainState

# What an update is skipped for, if it is not finite.
GUARDED = (
    "loss/spectral",
    "loss/adversarial",
    "loss/matching",
    "loss/pitch",
    "loss/content",
    "loss/discriminator",
    "grad_norm/generator",
    "grad_norm/discriminator",
)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules of a run.

    Attributes:
      generator: (features, voice, noise) -> audio.
      discriminator: audio -> judges, each a list of feature maps, the last its logits.
      extractor: frozen networks, for L_crepe, L_w2l and the features of mixup.
    """

    generator: nn.Module
    discriminator: nn.Module
    extractor: FeatureExtractor


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """How the networks learn; the learning rates are functions of the step."""

    generator: optax.GradientTransformation
    discriminator: optax.GradientTransformation
    generator_rate: optimizers.Schedule
    discriminator_rate: optimizers.Schedule


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
      weights: of the terms spectral, adversarial, matching, pitch and content; of
        weight 0, matching is not computed.
      fft_sizes: of L_recon.
      content_layer: of Wav2Letter, whose activations L_w2l compares.
      ema_decay: of the running mean of the generator's parameters.
    """

    weights: Mapping[str, float]
    fft_sizes: tuple[int, ...]
    content_layer: str
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """Which parts of the objective are in force."""

    adversarial: bool = False
    unaligned: bool = False
    mixup: bool = False

    @property
    def passes(self) -> tuple[str, ...]:
        chosen = {"unaligned": self.unaligned, "mixup": self.mixup}
        return ("aligned", *(name for name, on in chosen.items() if on))


# Those of a run of several singers, in their order.
PHASES = (
    Phase(),
    Phase(adversarial=True, unaligned=True),
    Phase(adversarial=True, unaligned=True, mixup=True),
)


def phase_at(step: int, *, adversarial_from: int, mixup_from: int, num_singers: int):
    """The phase of an update (method.md, section 4).

    Args:
      step: of the update, from 0.
      adversarial_from: first step with D and the unaligned terms.
      mixup_from: first step with mixup.
      num_singers: with one there are neither unaligned terms nor mixup.
    """
    several = num_singers > 1
    adversarial = step >= adversarial_from
    return Phase(adversarial, adversarial and several, step >= mixup_from and several)


def example_inputs(extractor: FeatureExtractor, num_samples: int):
    """Features and Noise of zeros, [1, ...], for a length on every grid."""
    geometry = extractor.geometry
    frames = (1, geometry.num_frames(num_samples))
    asr_frames = (1, geometry.num_asr_frames(num_samples), extractor.asr_size)
    features = Features(jnp.zeros(frames), jnp.zeros(frames), jnp.zeros(asr_frames))
    samples = (1, num_samples)
    return features, Noise(jnp.zeros(samples), jnp.zeros(samples), jnp.zeros(1))


def init_generator(generator: nn.Module, extractor: FeatureExtractor, rng):
    """Fresh parameters of a generator for the features of an extractor."""
    features, noise = example_inputs(extractor, 4 * extractor.geometry.asr_hop_length)
    singer_id = jnp.zeros(1, jnp.int32)
    return generator.init(rng, features, singer_id, noise, method=_sing)["params"]


def init_state(networks: Networks, tx: Optimizers, rng) -> TrainState:
    """A fresh state; call it under `jit` with shardings, so that it is born sharded."""
    rng_generator, rng_discriminator = jax.random.split(rng)
    generator = init_generator(networks.generator, networks.extractor, rng_generator)
    discriminator = networks.discriminator.init(
        rng_discriminator, jnp.zeros((1, networks.extractor.geometry.segment_samples))
    )["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        generator=NetworkState(generator, tx.generator.init(generator)),
        discriminator=NetworkState(discriminator, tx.discriminator.init(discriminator)),
        ema_params=jax.tree.map(jnp.copy, generator),
        guard=Guard(
            skipped=jnp.zeros(len(GUARDED), jnp.int32),
            in_a_row=jnp.zeros((), jnp.int32),
            rollbacks=jnp.zeros((), jnp.int32),
        ),
    )


def _sing(generator, features, singer_id, noise):
    """Embeds and sings: touches every parameter of a generator."""
    return generator(features, generator.embed(singer_id), noise)


def draw_noise(rng, batch_size: int, num_samples: int) -> Noise:
    """Fresh noise for training segments, their sines starting anywhere."""
    rng_z, rng_excitation, rng_phase = jax.random.split(rng, 3)
    return Noise(
        jax.random.uniform(rng_z, (batch_size, num_samples)),
        jax.random.normal(rng_excitation, (batch_size, num_samples)),
        jax.random.uniform(rng_phase, (batch_size,)),
    )


def other_singers(rng, singer_id, num_singers: int):
    """For each one another singer, uniformly: [B] -> [B]."""
    step = jax.random.randint(rng, singer_id.shape, 1, num_singers)
    return (singer_id + step) % num_singers


def embed(networks: Networks, params, singer_id):
    """Voices of singers, [B] -> [B, E]."""
    return networks.generator.apply({"params": params}, singer_id, method="embed")


def sing(networks: Networks, params, features, voice, noise):
    """Audio [B, N] of features in voices [B, E]."""
    return networks.generator.apply({"params": params}, features, voice, noise)


def back_translated(networks: Networks, params, frozen, batch: Batch, rng) -> Features:
    """Features of the batch as virtual singers would sing it; no gradient.

    Each virtual singer mixes the source's own voice with another one, nu ~ U[0, 1].
    """
    rng_other, rng_mix, rng_noise = jax.random.split(rng, 3)
    batch_size, num_samples = batch.audio.shape
    num_singers = networks.generator.num_singers
    other_id = other_singers(rng_other, batch.singer_id, num_singers)
    nu = jax.random.uniform(rng_mix, (batch_size, 1))
    own, other = (embed(networks, params, i) for i in (batch.singer_id, other_id))
    noise = draw_noise(rng_noise, batch_size, num_samples)
    audio = sing(networks, params, batch.features, nu * own + (1 - nu) * other, noise)
    extracted = networks.extractor.extract(
        frozen, audio, asr_stats=batch.asr_stats, viterbi=False
    )
    return jax.lax.stop_gradient(extracted.features)


def perceptual_features(networks: Networks, objective, frozen, audio, asr_stats):
    """What the frozen networks hear.

    Args:
      networks, objective, frozen: as in `train_step`.
      audio: [B, N], recorded or sung.
      asr_stats: [B, 3, 13, 2] of the recordings it is or imitates; with its own ones
        L_w2l would be blind to gain.

    Returns:
      dict of `content` and, where there is CREPE, `pitch`.
    """
    frozen = jax.lax.stop_gradient(frozen)
    extractor = networks.extractor
    activations, _ = extractor.read(frozen, audio, asr_stats=asr_stats)
    heard = {"content": activations[objective.content_layer]}
    if extractor.crepe is not None:
        heard["pitch"] = extractor.pitch_embedding(frozen, audio)
    return heard


def feature_scales(networks: Networks, objective, frozen, batch: Batch):
    """Mean distance of two different segments, per perceptual term.

    Measured once at the start of a run, it makes L_crepe and L_w2l comparable with the
    other terms; raw activations of CREPE are huge.
    """
    heard = perceptual_features(
        networks, objective, frozen, batch.audio, batch.asr_stats
    )
    return {
        name: jnp.mean(jnp.abs(value - jnp.roll(value, 1, axis=0)))
        for name, value in heard.items()
    }


def side_by_side(passes):
    """Passes in one batch: P trees of leaves [B, ...] -> leaves [B * P, ...]."""
    return jax.tree.map(
        lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *passes
    )


def apart(x, count: int) -> list:
    """Undoes `side_by_side` of an array: [B * P, ...] -> P arrays [B, ...]."""
    x = x.reshape(-1, count, *x.shape[1:])
    return [x[:, row] for row in range(count)]


def fidelity_terms(networks, objective, frozen, scales, batch: Batch, passes: dict):
    """L_recon, L_crepe and L_w2l, each summed over the passes it applies to.

    Args:
      networks, objective, frozen, scales: as in `train_step`.
      batch: what was sung.
      passes: name -> audio [B, N].

    Returns:
      dict of scalars.
    """
    count = len(passes)
    real = perceptual_features(
        networks, objective, frozen, batch.audio, batch.asr_stats
    )
    fake = perceptual_features(
        networks,
        objective,
        frozen,
        side_by_side(passes.values()),
        jnp.repeat(batch.asr_stats, count, axis=0),
    )
    terms = {
        name: count
        * losses.feature_distance(
            value, jnp.repeat(real[name], count, axis=0), scales[name]
        )
        for name, value in fake.items()
    }
    truthful = with_truth(passes)
    terms["spectral"] = len(truthful) * losses.spectral_loss(
        side_by_side([passes[name] for name in truthful]),
        jnp.repeat(batch.audio, len(truthful), axis=0),
        objective.fft_sizes,
    )
    return terms


def weighted_sum(objective, terms: dict):
    """Loss terms as one: what is minimised."""
    return sum(objective.weights[name] * value for name, value in terms.items())


def with_truth(passes) -> list[str]:
    """The passes that L_recon applies to: in an unaligned one another singer sings."""
    return [name for name in passes if name != "unaligned"]


def matching_term(judge, discriminator_params, batch: Batch, names, fake_judges):
    """Feature matching, summed over the passes that have a truth.

    Args:
      judge: (params, audio) -> judges.
      discriminator_params: of the discriminator.
      batch: what was sung.
      names: of the passes.
      fake_judges: of the passes, side by side.
    """
    rows = [names.index(name) for name in with_truth(names)]

    def truthful(x):
        passes = apart(x, len(names))
        return side_by_side([passes[row] for row in rows])

    real_judges = jax.lax.stop_gradient(judge(discriminator_params, batch.audio))
    return len(rows) * losses.feature_matching(
        jax.tree.map(lambda x: jnp.repeat(x, len(rows), axis=0), real_judges),
        jax.tree.map(truthful, fake_judges),
    )


def parts_of(tree, passes: int, count: int):
    """Splits a batch for accumulation: [B * P, ...] -> [count, B * P / count, ...].

    A part takes every count-th example, so that a batch that is split over devices
    needs no exchange.
    """

    def split(x):
        x = x.reshape(-1, count, passes, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(count, -1, *x.shape[3:])

    return jax.tree.map(split, tree)


def each(function, *parts):
    """A function of every part, one after the other; its results are stacked."""
    if len(jax.tree.leaves(parts)[0]) == 1:
        only = function(*jax.tree.map(lambda x: x[0], parts))
        return jax.tree.map(lambda x: x[None], only)
    return jax.lax.map(lambda part: function(*part), parts)


def mean_of_parts(tree):
    """Undoes what `each` stacked: [count, ...] -> [...]."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)


def differentiable(function, params, parts):
    """A function of every part, and how a gradient gets back from it.

    Of several parts nothing is kept but the results: on its way back the gradient
    computes each part again.

    Args:
      function: (params, part) -> array.
      params: what it is differentiated by.
      parts: a tree of leaves [count, ...].

    Returns:
      (the stacked results; function: their gradients, stacked -> the mean gradient of
      the parameters).
    """

    def pull_back(part):
        return jax.vjp(lambda params: function(params, part), params)

    if len(jax.tree.leaves(parts)[0]) == 1:
        result, back = pull_back(jax.tree.map(lambda x: x[0], parts))
        return result[None], lambda gradient: back(gradient[0])[0]
    results = each(functools.partial(function, params), parts)

    def back(gradients):
        pulled = each(
            lambda part, gradient: pull_back(part)[1](gradient)[0], parts, gradients
        )
        return mean_of_parts(pulled)

    return results, back


def running_mean(mean, params, step, decay: float):
    """The mean of a generator's parameters, those of an update added.

    Its memory is short at first, so that a short run's mean is not its initialisation.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, mean, params)


def guarded(old: TrainState, new: TrainState, metrics) -> TrainState:
    """The new state; the old one, the step counted, if a metric is not finite.

    Args:
      old: before the update.
      new: after it.
      metrics: of the update; those that GUARDED names must be finite.
    """
    broken = jnp.stack([~jnp.isfinite(metrics.get(name, 0.0)) for name in GUARDED])
    skip = broken.any()
    guard = old.guard.replace(
        skipped=old.guard.skipped + broken,
        in_a_row=jnp.where(skip, old.guard.in_a_row + 1, 0),
    )
    kept = jax.tree.map(lambda was, now: jnp.where(skip, was, now), old, new)
    return kept.replace(step=new.step, guard=guard)


def songs(networks: Networks, phase: Phase, params, frozen, batch: Batch, rng):
    """What the passes of a phase sing, side by side: features, singers, fresh noise.

    Args:
      networks, phase, frozen, batch: as in `train_step`.
      params: of the generator that sings the sources of mixup.
      rng: key of an update.

    Returns:
      (Features, [B * P] singers, Noise).
    """
    rng_noise, rng_other, rng_mixup = jax.random.split(rng, 3)
    batch_size, num_samples = batch.audio.shape
    sources, singers = [batch.features], [batch.singer_id]
    if phase.unaligned:
        num_singers = networks.generator.num_singers
        sources.append(batch.features)
        singers.append(other_singers(rng_other, batch.singer_id, num_singers))
    if phase.mixup:
        sources.append(back_translated(networks, params, frozen, batch, rng_mixup))
        singers.append(batch.singer_id)
    noise = draw_noise(rng_noise, batch_size * len(sources), num_samples)
    return side_by_side(sources), side_by_side(singers), noise


def train_step(
    networks: Networks,
    tx: Optimizers,
    objective: Objective,
    phase: Phase,
    state: TrainState,
    batch: Batch,
    frozen: FrozenParams,
    scales: dict[str, Any],
    rng,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of D, then of G against the new D; neither if it is not finite.

    Args:
      networks, tx, objective, phase: fixed for a compiled step.
      state: donated.
      batch: training segments.
      frozen: weights that are never updated; no gradient reaches them.
      scales: from `feature_scales`.
      rng: the run's key; it is folded with the step.
      accumulate: parts of the batch whose gradients are computed one after the other,
        for less memory; the update is that of the whole batch (of feature matching,
        whose scale is each part's own, nearly).

    Returns:
      (state, metrics); the loss terms are means over the passes they apply to.
    """
    rng = jax.random.fold_in(rng, state.step)
    names = phase.passes
    sung = songs(networks, phase, state.generator.params, frozen, batch, rng)
    sung = parts_of(sung, len(names), accumulate)
    batches = parts_of(batch, 1, accumulate)

    def generate(params, sung):
        features, singer_id, noise = sung
        voice = embed(networks, params, singer_id)
        return sing(networks, params, features, voice, noise)

    def judge(params, audio):
        judges = networks.discriminator.apply({"params": params}, audio)
        return jax.tree.map(lambda x: x.astype(jnp.float32), judges)

    def discriminator_loss(params, batch, fake):
        loss = losses.discriminator_loss(
            judge(params, batch.audio), judge(params, fake)
        )
        return len(names) * loss

    def generator_loss(fake, batch, discriminator_params):
        passes = dict(zip(names, apart(fake, len(names)), strict=True))
        terms = fidelity_terms(networks, objective, frozen, scales, batch, passes)
        if phase.adversarial:
            judges = judge(discriminator_params, fake)
            terms["adversarial"] = len(names) * losses.adversarial_loss(judges)
            if objective.weights["matching"]:
                terms["matching"] = matching_term(
                    judge, discriminator_params, batch, names, judges
                )
        return weighted_sum(objective, terms), terms

    fake, pull_back = differentiable(generate, state.generator.params, sung)
    metrics = {}

    discriminator = state.discriminator
    if phase.adversarial:
        rate = tx.discriminator_rate(state.step)
        learn = jax.value_and_grad(discriminator_loss)
        loss, grads = mean_of_parts(
            each(functools.partial(learn, discriminator.params), batches, fake)
        )
        discriminator = optimizers.apply(tx.discriminator, discriminator, grads, rate)
        metrics["loss/discriminator"] = loss / len(names)
        metrics["grad_norm/discriminator"] = optax.tree.norm(grads)
        metrics["learning_rate/discriminator"] = rate

    learn = jax.value_and_grad(generator_loss, has_aux=True)
    (total, terms), fake_grads = each(
        functools.partial(learn, discriminator_params=discriminator.params),
        fake,
        batches,
    )
    total, terms = mean_of_parts((total, terms))
    grads = pull_back(fake_grads)
    rate = tx.generator_rate(state.step)
    generator = optimizers.apply(tx.generator, state.generator, grads, rate)

    for name, value in terms.items():
        applies_to = with_truth(names) if name in ("spectral", "matching") else names
        metrics[f"loss/{name}"] = value / len(applies_to)
    metrics["loss/generator"] = total
    metrics["grad_norm/generator"] = optax.tree.norm(grads)
    metrics["learning_rate/generator"] = rate

    for name, old, new in (
        ("generator", state.generator, generator),
        ("discriminator", state.discriminator, discriminator),
    ):
        change = optax.tree.norm(optax.tree.sub(new.params, old.params))
        metrics[f"update_ratio/{name}"] = change / optax.tree.norm(old.params)

    updated = state.replace(
        step=state.step + 1,
        generator=generator,
        discriminator=discriminator,
        ema_params=running_mean(
            state.ema_params, generator.params, state.step, objective.ema_decay
        ),
    )
    state = guarded(state, updated, metrics)
    metrics["guard/in_a_row"] = state.guard.in_a_row
    metrics["guard/rollbacks"] = state.guard.rollbacks
    metrics |= {
        f"skipped/{name}": count
        for name, count in zip(GUARDED, state.guard.skipped, strict=True)
    }
    return state, metrics


def eval_step(
    networks: Networks,
    objective: Objective,
    params,
    batch: Batch,
    frozen: FrozenParams,
    scales: dict[str, Any],
    rng,
):
    """Sings a validation batch with its own voices and with the next singers'.

    Args:
      networks, objective, frozen, scales: as in `train_step`.
      params: of the generator, the running mean.
      batch: validation segments.
      rng: key of the noise.

    Returns:
      (terms of the losses; dict of `reconstruction` and `conversion` audio [B, N]; dict
      of the f0 in Hz that is heard in each, and that was `asked` for, [B, T], 0 where
      unvoiced).
    """
    noise = draw_noise(rng, *batch.audio.shape)
    noise = noise.replace(phase=jnp.zeros_like(noise.phase))
    next_id = (batch.singer_id + 1) % networks.generator.num_singers
    sung = {
        name: sing(
            networks, params, batch.features, embed(networks, params, singer_id), noise
        )
        for name, singer_id in (
            ("reconstruction", batch.singer_id),
            ("conversion", next_id),
        )
    }
    terms = fidelity_terms(
        networks,
        objective,
        frozen,
        scales,
        batch,
        {"aligned": sung["reconstruction"]},
    )
    terms["total"] = weighted_sum(objective, terms)
    f0_hz = {
        name: networks.extractor.f0(frozen, audio, viterbi=False)[0]
        for name, audio in sung.items()
    }
    return terms, sung, {"asked": batch.features.f0_hz, **f0_hz}
