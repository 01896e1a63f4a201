"""Sings whole recordings with a trained model: the rules of conversion (method.md, 5)."""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from svc_jax import excitation, pitch
from svc_jax.errors import UserError
from svc_jax.geometry import NOISE_BLOCK
from svc_jax.models.frames import STREAM
from svc_jax.types import Features, Noise

if TYPE_CHECKING:
    from svc_jax.bundles import Model

CHUNK_SAMPLES = 3 * NOISE_BLOCK  # about as many at a time: 1 GB for the paper's
MAX_SEMITONES = 48


def transposition(rule: str, source_f0_hz, target_mean_hz: float) -> float:
    """The factor that the source's f0 is multiplied by.

    Args:
      rule: `mean`, the ratio of the arithmetic means over voiced frames, the paper's;
        `octave`, that to the nearest octave; `none`; or a number of semitones.
      source_f0_hz: [T], 0 where unvoiced.
      target_mean_hz: of the target's recordings.

    Raises:
      UserError: for any other rule.
    """
    if rule == "none":
        return 1.0
    if rule in ("mean", "octave"):
        voiced = source_f0_hz[source_f0_hz > 0]
        if not voiced.size:
            return 1.0
        ratio = target_mean_hz / float(voiced.mean(dtype=np.float64))
        return ratio if rule == "mean" else 2.0 ** round(math.log2(ratio))
    try:
        semitones = float(rule)
    except ValueError:
        raise UserError(
            f"--transpose {rule!r}: choose mean, octave, none or semitones as -3.5."
        ) from None
    if not abs(semitones) <= MAX_SEMITONES:
        raise UserError(
            f"--transpose {rule}: choose from -{MAX_SEMITONES} to {MAX_SEMITONES}"
            " semitones."
        )
    return 2.0 ** (semitones / 12)


def parse_mix(text: str) -> dict[str, float]:
    """A virtual singer, "A:0.5,B:0.5" -> {"A": 0.5, "B": 0.5}.

    Raises:
      UserError: if it is not a convex combination: weights of at least 0, of sum 1.
    """
    mix = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(.+):\s*([^:]+?)\s*", part)
        try:
            name, weight = match[1].strip(), float(match[2])
        except (TypeError, ValueError):
            raise UserError(
                f"--mix {text!r}: {part!r} is not NAME:WEIGHT; write A:0.5,B:0.5."
            ) from None
        if name in mix:
            raise UserError(f"--mix {text!r}: {name} stands twice; add its weights.")
        if not weight >= 0:
            raise UserError(
                f"--mix {text!r}: {name} has weight {weight:g}; a mixture of voices"
                " takes weights from 0 to 1."
            )
        mix[name] = weight
    total = sum(mix.values())
    if abs(total - 1) > 1e-3:
        raise UserError(
            f"--mix {text!r}: the weights add up to {total:g}; they must add up to 1."
        )
    return {name: weight / total for name, weight in mix.items()}


def voice_of(model: "Model", mix: dict[str, float]):
    """The voice [1, E] and the mean f0 in Hz of a mixture of singers.

    Raises:
      UserError: for an unknown singer; lists the known ones.
    """
    ids = jnp.asarray([model.card.singer_id(name) for name in mix], jnp.int32)
    weights = jnp.asarray(list(mix.values()), jnp.float32)
    voices = model.generator.apply({"params": model.params}, ids, method="embed")
    means = np.asarray([model.card.singers[i].mean_f0_hz for i in np.asarray(ids)])
    mean_hz = float(np.dot(means, np.asarray(weights)))
    return jnp.sum(voices * weights[:, None], axis=0, keepdims=True), mean_hz


_frame_phase = jax.jit(
    excitation.frame_phase, static_argnames=("sample_rate", "hop_length")
)


@functools.partial(jax.jit, static_argnums=0)
def _sing(generator, params, features, voice, noise, within):
    return generator.apply({"params": params}, features, voice, noise, **within)


def synthesize(model: "Model", features: Features, voice, *, seed: int = 0):
    """Audio of features in a voice; see `sing`.

    Args:
      model: the trained model.
      features: f0_hz, loudness_db [T], asr_features [A, D] of a whole recording.
      voice: [1, E].
      seed: of the noise.

    Returns:
      float32 [T * hop_length].
    """
    content = [features.asr_features]
    pieces = sing(
        model, features.f0_hz, features.loudness_db, content, voice, seed=seed
    )
    return np.concatenate(list(pieces))


def sing(
    model: "Model",
    f0_hz,
    loudness_db,
    content: Iterable[np.ndarray],
    voice,
    *,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Audio piece by piece, as if in one pass, in memory for one piece.

    Pieces overlap by what the generator sees to each side, and the noise is a function
    of (seed, absolute block), so that their seams cannot be heard or measured.

    Args:
      model: the trained model.
      f0_hz, loudness_db: [T] of a whole recording.
      content: its ASR features, [A', D] after [A', D], A of them in all.
      voice: [1, E].
      seed: of the noise.

    Yields:
      float32, together [T * hop_length].
    """
    generator, geometry = model.generator, model.extractor.geometry
    total = f0_hz.size * geometry.hop_length
    chunk_samples = geometry.padded_length(CHUNK_SAMPLES)

    def around(start: int, context: int):
        """A chunk with its context, in samples: one shape for all chunks.

        At the file's ends the network sees its true ends.
        """
        context = geometry.padded_length(context)
        window = min(total, chunk_samples + 2 * context)
        first = min(max(start - context, 0), total - window)
        return first, first + window

    def frames(first: int, last: int) -> slice:
        return slice(first // geometry.hop_length, last // geometry.hop_length)

    rng, read = jax.random.key(seed), _Window(content)
    turns, grid = _start_phases(f0_hz, geometry), geometry.asr_hop_length
    for start in range(0, total, chunk_samples):
        stop = min(start + chunk_samples, total)
        seen, seen_last = around(start, generator.context_samples())
        first, last = around(start, generator.audio_context_samples())
        chunk = Features(
            f0_hz[None, frames(first, last)],
            loudness_db[None, frames(seen, seen_last)],
            read(seen // grid, seen_last // grid)[None],
        )
        z, normal = _noise_span(rng, first, last - first)
        noise = Noise(z[None], normal[None], turns[None, first // geometry.hop_length])
        within = {"first": first - seen} if seen_last - seen > last - first else {}
        sung = _sing(generator, model.params, chunk, voice, noise, within)
        yield np.asarray(sung)[0, start - first : stop - first]


class _Window:
    """Rows [first, last) of arrays that follow each other; it only moves on."""

    def __init__(self, parts: Iterable[np.ndarray]):
        self._parts = iter(parts)
        self._held, self._first = next(self._parts), 0

    def __call__(self, first: int, last: int) -> np.ndarray:
        held = [self._held[first - self._first :]]
        missing = last - first - len(held[0])
        while missing > 0:
            held.append(next(self._parts))
            missing -= len(held[-1])
        self._held, self._first = np.concatenate(held), first
        return self._held[: last - first]


@functools.partial(jax.jit, static_argnums=0)
def _sing_block(generator, params, carried, features, voice, noise, real):
    return generator.apply(
        {"params": params, STREAM: carried},
        features,
        voice,
        noise,
        real,
        mutable=[STREAM],
    )


def stream(
    model: "Model", voice, blocks: Iterable[Features], *, seed: int = 0
) -> Iterator[np.ndarray]:
    """Audio of features as they arrive: what `synthesize` gives for them all at once.

    The model carries what it needs of the past from block to block; what it needs of
    the future makes its audio `generator.latency_samples` late.

    Args:
      model: the trained model; its generator can stream.
      voice: [1, E].
      blocks: Features [T], [T] and [A, D] of consecutive spans of a recording, each on
        the grid of ASR frames; blocks of one length share one compiled program.
      seed: of the noise.

    Yields:
      float32 audio after each block, together as long as the blocks; the last of it,
      of `latency_samples`, after their end.

    Raises:
      UserError: if the generator cannot stream.
    """
    generator, geometry = model.generator, model.extractor.geometry
    if not hasattr(generator, "latency_samples"):
        raise UserError(
            "this model's generator sees too far ahead to sing a stream; train one with"
            " configs/fast.py."
        )
    rng, carried, start = jax.random.key(seed), None, 0
    late = generator.latency_samples  # of which the beginning is still to be dropped

    def sing(features, real):
        nonlocal carried, start, late
        features = jax.tree.map(lambda x: jnp.asarray(x)[None], features)
        count = features.f0_hz.shape[1] * geometry.hop_length
        _, normal = _noise_span(rng, start, count)
        noise = Noise(None, normal[None], jnp.zeros(1))
        real = jnp.full(features.f0_hz.shape, real)
        arguments = (features, voice, noise, real)
        if carried is None:
            shapes = jax.eval_shape(
                functools.partial(generator.apply, mutable=[STREAM]),
                {"params": model.params},
                *arguments,
            )[1][STREAM]
            carried = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        audio, variables = _sing_block(generator, model.params, carried, *arguments)
        carried, start = variables[STREAM], start + count
        audio, late = np.asarray(audio)[0, late:], max(late - count, 0)
        return audio

    features = None
    for features in blocks:
        yield sing(features, 1.0)
    if features is None:
        return
    # Silence after the end brings out what is still inside.
    total, nothing = start, jax.tree.map(np.zeros_like, features)
    end = total + generator.latency_samples
    while start < end:
        rest = end - start
        yield sing(nothing, 0.0)[:rest]


def _noise_span(rng, start: int, count: int):
    """`count` samples of excitation.block_noise from `start` on: (uniform, normal)."""
    first, offset = divmod(start, NOISE_BLOCK)
    num_blocks = -(-(offset + count) // NOISE_BLOCK)  # whole ones: fewer programs
    noise = excitation.block_noise(rng, num_blocks * NOISE_BLOCK, first)
    return tuple(np.asarray(samples)[offset : offset + count] for samples in noise)


def _start_phases(f0_hz, geometry) -> np.ndarray:
    """Phase of the sine before each frame, in turns, float32 [T]."""
    phase = _frame_phase(
        f0_hz[None], sample_rate=geometry.sample_rate, hop_length=geometry.hop_length
    )
    return np.asarray(phase)[0]


def convert(
    model: "Model",
    audio,
    mix: dict[str, float],
    *,
    transpose: str = "mean",
    seed: int = 0,
    heard: Features | None = None,
):
    """Re-sings a recording in another voice.

    Args:
      model: the trained model.
      audio: float32 [N] at the model's sample rate.
      mix: singers and their weights; one singer with weight 1 for a known voice.
      transpose: see `transposition`.
      seed: of the noise.
      heard: the recording's own Features, where they are known already.

    Returns:
      (float32 [N]; the Features it was sung from, f0 as it was asked for).
    """
    if heard is None:
        [extracted] = model.extractor.extract_recordings(model.frozen, [audio])
        heard = extracted.features
    voice, mean_hz = voice_of(model, mix)
    f0_hz, _ = pitch.repair_octaves(heard.f0_hz, model.extractor.geometry.frame_rate)
    factor = transposition(transpose, f0_hz, mean_hz)
    features = heard.replace(f0_hz=f0_hz * np.float32(factor))
    return synthesize(model, features, voice, seed=seed)[: audio.size], features
