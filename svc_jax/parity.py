"""Whether another form of a model sings as the model does; asked at every export."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from svc_jax import synthesis
from svc_jax.errors import UserError
from svc_jax.types import Features, Noise

TOLERANCE = 1e-4  # largest difference of two samples
ASR_FRAMES = (1, 7, 50)  # of the lengths that are compared


@functools.partial(jax.jit, static_argnums=0)
def _sing(generator, params, features: Features, voice, noise: Noise):
    """The generator's own singing, [B, N]."""
    return generator.apply({"params": params}, features, voice, noise)


def singing(model) -> Callable:
    """(Features, voice, Noise) -> [B, N], by a model."""
    return functools.partial(_sing, model.generator, model.params)


def inputs(model, num_asr_frames: int):
    """Features as of a song, in a voice of all the model's: (Features, voice, Noise)."""
    geometry, singers = model.extractor.geometry, model.card.singers
    num_samples = num_asr_frames * geometry.asr_hop_length
    frame = np.arange(geometry.num_frames(num_samples))
    rng = np.random.default_rng(num_asr_frames)
    mix = {singer.name: 1 / len(singers) for singer in singers}
    voice, mean_hz = synthesis.voice_of(model, mix)
    f0_hz = mean_hz * (1 + 0.1 * np.sin(frame / 9)) * (frame % 40 < 30)
    loudness_db = -50 + 20 * np.sin(frame / 11)
    content = rng.normal(size=(num_asr_frames, model.extractor.asr_size))
    features = Features(*(np.float32(x)[None] for x in (f0_hz, loudness_db, content)))
    z, normal = rng.uniform(size=(1, num_samples)), rng.normal(size=(1, num_samples))
    return features, voice, Noise(np.float32(z), np.float32(normal), np.zeros(1, "f4"))


def distance(model, other: Callable) -> float:
    """The largest difference of a sample between a model and another form of it.

    Args:
      model: bundles.Model.
      other: (Features, voice, Noise) -> [B, N], as the model's generator.
    """
    distances = []
    for num_asr_frames in ASR_FRAMES:
        given = inputs(model, num_asr_frames)
        own = np.asarray(singing(model)(*given))
        distances.append(np.abs(own - np.asarray(other(*given))).max())
    return float(max(distances))


def check(what: str, found: float):
    """Raises UserError if a distance is beyond the tolerance, or no number."""
    if not found <= TOLERANCE:
        raise UserError(
            f"{what} would differ from the model by {found:.2g}, more than"
            f" {TOLERANCE:g}, and was not written; report it with what"
            " python -m svc_jax.doctor prints."
        )
