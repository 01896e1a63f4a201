"""A new voice for a trained model, from seconds or minutes of recordings.

The generator knows a voice as an embedding. First the best mixture of the known voices
is sought, then the embedding is free, and at last, if that is asked for, the generator
learns too. Each stage minimises L_recon (method.md, 3) on clips of the recordings and
keeps the running mean that is best on clips held out of it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipeline.schema import Singer
from svc_jax import builders, conversion, losses, optimizers, pitch, steps
from svc_jax.bundles import Model
from svc_jax.errors import UserError
from svc_jax.types import Features, NetworkState

BATCH_SIZE = 4  # clips
HELD_OUT_EVERY = 5  # clips; the one in the middle is held out
MAX_HELD_OUT = 32
MIN_CLIPS = 3
CHECK_EVERY = 10  # steps
PATIENCE = 4  # checks without a better one
EMA_DECAY = 0.95
OPTIMIZER = optimizers.clipped_adamw(max_grad_norm=1.0, b2=0.99, weight_decay=0.0)


@flax.struct.dataclass
class Clips:
    """Short pieces of recordings and their features.

    Attributes:
      audio: [C, N] in [-1, 1].
      features: Features [C, ...].
    """

    audio: jax.Array
    features: Features

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, chosen) -> "Clips":
        return jax.tree.map(lambda x: x[chosen], self)


def mixed(logits, voices):
    """A convex combination of voices: [S], [S, E] -> [E]."""
    return jax.nn.softmax(logits) @ voices


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of adapting.

    Attributes:
      name: for people.
      read: (voices [S, E] of the known singers, what is learnt) -> dict of the new
        `voice` [E] and, where G learns, its `params`.
      learning_rate: of Adam.
      num_steps: at most.
    """

    name: str
    read: Callable
    learning_rate: float
    num_steps: int


MIXTURE = Stage(
    "mixture", lambda voices, logits: {"voice": mixed(logits, voices)}, 0.15, 100
)
VOICE = Stage("voice", lambda _, voice: {"voice": voice}, 0.05, 300)
FINETUNE = Stage("finetune", lambda _, both: both, 2e-4, 300)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What came of it; distances are L_recon on the held-out clips.

    Attributes:
      params: of the generator; without finetuning, as they were.
      voice: [E].
      weights: [S] of the known singers in the mixture.
      singers: [S] distance of each known singer.
      mixture: distance of the mixture.
      adapted: distance in the end.
    """

    params: Any
    voice: np.ndarray
    weights: np.ndarray
    singers: np.ndarray
    mixture: float
    adapted: float


# Recordings.


def hear(model: Model, source):
    """Audio [N] and Features [T], [T], [A, D] of a recording, N on every grid.

    Raises:
      UserError: if it cannot be used.
    """
    geometry = model.extractor.geometry
    with conversion.listened(source, geometry.sample_rate) as (_, recorded):
        extracted, content = conversion.hear(model, recorded)
        audio = recorded.read(0, geometry.padded_length(recorded.num_samples))
        features = extracted.features
        f0_hz, _ = pitch.repair_octaves(features.f0_hz, geometry.frame_rate)
        content = np.concatenate(list(content))
    return audio, Features(f0_hz, features.loudness_db, content)


def cut(heard, geometry) -> Clips:
    """Clips, as long as training segments, of recordings one after the other.

    Args:
      heard: of each recording (audio, Features), from `hear`.
      geometry: of the model.

    Raises:
      UserError: if there is voice in fewer than MIN_CLIPS.
    """
    audio, features = jax.tree.map(lambda *parts: np.concatenate(parts), *heard)
    count = audio.size // geometry.segment_samples

    def clips(x):
        length = len(x) * geometry.segment_samples // audio.size
        return x[: count * length].reshape(count, length, *x.shape[1:])

    # A recording may be shorter than a clip; where one ends within it, no matter.
    cut = Clips(clips(audio), jax.tree.map(clips, features))
    voiced = cut[(cut.features.f0_hz > 0).any(axis=1)]
    if len(voiced) < MIN_CLIPS:
        seconds = geometry.segment_samples / geometry.sample_rate
        raise UserError(
            f"--input holds {len(voiced) * seconds:g} s of voice; {MIN_CLIPS * seconds:g}"
            " s are the least, half a minute is good."
        )
    return voiced


def hold_out(clips: Clips) -> tuple[Clips, Clips]:
    """(clips to learn from, clips to judge by), the latter spread over all."""
    every = max(HELD_OUT_EVERY, -(-len(clips) // MAX_HELD_OUT))
    is_held = np.arange(len(clips)) % every == min(every, len(clips)) // 2
    return clips[~is_held], clips[is_held]


def describe(name: str, heard, geometry) -> Singer:
    """What a model's card says of a singer."""
    f0_hz = np.concatenate([features.f0_hz for _, features in heard])
    voiced = f0_hz[f0_hz > 0].astype(np.float64)
    low_hz, high_hz = np.percentile(voiced, [1, 99])
    seconds = sum(audio.size for audio, _ in heard) / geometry.sample_rate
    return Singer(name, voiced.mean(), low_hz, high_hz, seconds / 60)


# Learning.


def distance(generator: nn.Module, fft_sizes, params, voice, clips: Clips, noise):
    """L_recon of clips sung in a voice [E]; scalar."""
    voices = jnp.broadcast_to(voice, (len(clips), voice.size))
    sung = generator.apply({"params": params}, clips.features, voices, noise)
    return losses.spectral_loss(sung, clips.audio, fft_sizes)


@partial(jax.jit, static_argnums=(0, 1))
def judge(generator: nn.Module, fft_sizes, params, voice, clips: Clips):
    """L_recon of clips, always with the same noise and in the memory for one; scalar."""
    noise = steps.draw_noise(jax.random.key(0), *clips.audio.shape)

    def of_clip(given):
        clip, noise = jax.tree.map(lambda x: x[None], given)
        return distance(generator, fft_sizes, params, voice, clip, noise)

    return jnp.mean(jax.lax.map(of_clip, (clips, noise)))


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(generator, fft_sizes, params, changed, clips: Clips, rng):
    """Of L_recon of a few clips, by what a Stage reads; stages share the program."""
    rng_clips, rng_noise = jax.random.split(rng)
    batch = clips[jax.random.randint(rng_clips, (BATCH_SIZE,), 0, len(clips))]
    noise = steps.draw_noise(rng_noise, *batch.audio.shape)

    def loss(changed):
        singing = {"params": params, **changed}
        return distance(generator, fft_sizes, **singing, clips=batch, noise=noise)

    return jax.grad(loss)(changed)


@partial(jax.jit, static_argnums=0)
def _follow(stage: Stage, voices, network: NetworkState, mean, gradients, step):
    """One step: (NetworkState, running mean) -> the same, and what a Stage reads."""
    _, pull_back = jax.vjp(partial(stage.read, voices), network.params)
    (grads,) = pull_back(gradients)
    network = optimizers.apply(OPTIMIZER, network, grads, stage.learning_rate)
    # A short memory at first, as in training.
    share = jnp.maximum(1 - EMA_DECAY, 9 / (10 + step))
    mean = optax.incremental_update(network.params, mean, share)
    return network, mean, stage.read(voices, network.params)


def learn(model: Model, stage: Stage, voices, start, clips, held_out, rng):
    """One stage, until held-out clips are sung no better.

    Args:
      model: for its generator.
      stage: which.
      voices: [S, E] of the known singers.
      start: of what is learnt.
      clips, held_out: from `hold_out`.
      rng: key of noise and choice of clips.

    Returns:
      (what was best, its distance).
    """
    from tqdm import tqdm

    generator, fft_sizes = model.generator, _fft_sizes(model)

    def judged(learnt) -> float:
        singing = {"params": model.params, **stage.read(voices, learnt)}
        return float(judge(generator, fft_sizes, **singing, clips=held_out))

    best, best_distance, failures = start, judged(start), 0
    network, mean = NetworkState(start, OPTIMIZER.init(start)), start
    changed = stage.read(voices, start)
    with tqdm(total=stage.num_steps, desc=stage.name, unit="step", disable=None) as bar:
        for step in range(stage.num_steps):
            gradients = _gradients(
                generator,
                fft_sizes,
                model.params,
                changed,
                clips,
                jax.random.fold_in(rng, step),
            )
            network, mean, changed = _follow(
                stage, voices, network, mean, gradients, step
            )
            bar.update()
            if (step + 1) % CHECK_EVERY:
                continue
            found = judged(mean)
            failures = 0 if found < best_distance else failures + 1
            if not failures:
                best, best_distance = mean, found
            bar.set_postfix({"distance": f"{best_distance:.3f}"}, refresh=False)
            if failures == PATIENCE:
                break
    return best, best_distance


def _fft_sizes(model: Model) -> tuple[int, ...]:
    return builders.objective(model.config).fft_sizes


def adapt(model: Model, clips: Clips, *, finetune: bool = False, seed: int = 0):
    """Seeks a voice in which the model sings clips as they are: Adapted.

    Args:
      model: with several singers.
      clips: of the new singer.
      finetune: the generator learns too, and with it all its voices change.
      seed: of noise and choice of clips.
    """
    singer_ids = jnp.arange(model.generator.num_singers)
    voices = model.generator.apply({"params": model.params}, singer_ids, method="embed")
    learnt, held_out = hold_out(clips)
    run = partial(learn, model, voices=voices, clips=learnt, held_out=held_out)
    rngs = jax.random.split(jax.random.key(seed), 3)

    sizes = _fft_sizes(model)
    singers = np.asarray(
        [judge(model.generator, sizes, model.params, v, held_out) for v in voices]
    )
    # Those who come near weigh more from the start.
    start = jnp.asarray(3 * (singers.mean() - singers) / (singers.std() + 1e-9))
    logits, mixture = run(stage=MIXTURE, start=start, rng=rngs[0])
    voice, adapted = run(stage=VOICE, start=mixed(logits, voices), rng=rngs[1])
    params = model.params
    if finetune:
        start = {"params": params, "voice": voice}
        both, adapted = run(stage=FINETUNE, start=start, rng=rngs[2])
        params, voice = both["params"], both["voice"]
    weights = jax.nn.softmax(logits)
    params, voice, weights = jax.device_get((params, voice, weights))
    return Adapted(params, voice, weights, singers, mixture, adapted)


def with_singer(model: Model, singer: Singer, params, voice) -> Model:
    """A model with one more singer, the last.

    Args:
      model: with several singers.
      singer: for its card.
      params: of the generator, still with its own singers.
      voice: [E].
    """
    table = params["singers"]["embedding"]
    table = np.concatenate([np.asarray(table), voice[None]])
    return dataclasses.replace(
        model,
        generator=model.generator.clone(num_singers=len(table)),
        params={**params, "singers": {"embedding": table}},
        card=dataclasses.replace(model.card, singers=(*model.card.singers, singer)),
    )
