"""A model's generator as a program of its own, which needs JAX and nothing else.

  program = jax.export.deserialize((folder / "generator.stablehlo").read_bytes())
  audio = program.call(f0_hz, loudness_db, asr_features, weights, z, noise, phase)

All are float32: f0_hz and loudness_db [1, T], asr_features [1, A, D] on the grids of
singers.json, A of any size; weights [1, S] of the singers, of sum 1; z [1, N], uniform
in [0, 1); noise [1, N], standard normal; phase [1], where the sine starts, in turns.
audio is [1, N].
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from svc_jax import parity
from svc_jax.types import Features, Noise

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO = "generator.stablehlo"


def stablehlo(model) -> bytes:
    """The program for every platform and for any length, its parameters within.

    Raises:
      UserError: if on this machine it sings differently than the model.
    """
    geometry = model.extractor.geometry
    num_singers = len(model.card.singers)
    voices = model.generator.apply(
        {"params": model.params}, np.arange(num_singers), method="embed"
    )

    def sing(f0_hz, loudness_db, asr_features, weights, z, noise, phase):
        return model.generator.apply(
            {"params": model.params},
            Features(f0_hz, loudness_db, asr_features),
            weights @ voices,
            Noise(z, noise, phase),
        )

    (asr_frames,) = jax.export.symbolic_shape("A")
    num_samples = geometry.asr_hop_length * asr_frames
    num_frames = geometry.asr_hop_length // geometry.hop_length * asr_frames
    lengths = (
        (num_frames,),
        (num_frames,),
        (asr_frames, model.extractor.asr_size),
        (num_singers,),
        (num_samples,),
        (num_samples,),
        (),
    )
    shapes = [jax.ShapeDtypeStruct((1, *length), jnp.float32) for length in lengths]
    exported = jax.export.export(jax.jit(sing), platforms=PLATFORMS)(*shapes)
    content = bytes(exported.serialize())
    call = jax.jit(jax.export.deserialize(content).call)
    weights = np.full((1, num_singers), 1 / num_singers, np.float32)

    def run(features, _, noise):
        return call(
            features.f0_hz,
            features.loudness_db,
            features.asr_features,
            weights,
            noise.z,
            noise.excitation,
            noise.phase,
        )

    parity.check(STABLEHLO, parity.distance(model, run))
    return content
