"""A model's generator as a program of its own, without the rest of this package.

  program = jax.export.deserialize((folder / "generator.stablehlo").read_bytes())
  audio = program.call(f0_hz, loudness_db, asr_features, weights, z, noise, phase)

needs JAX and nothing else;

  session = onnxruntime.InferenceSession(folder / "generator.onnx")
  (audio,) = session.run(None, {"f0_hz": f0_hz, ...})

needs no JAX.

All are float32: f0_hz and loudness_db [1, T], asr_features [1, A, D] on the grids of
singers.json, A of any size; weights [1, S] of the singers, of sum 1; z [1, N], uniform
in [0, 1); noise [1, N], standard normal; phase [1], where the sine starts, in turns.
audio is [1, N].
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from svc_jax import onnx_graphs, parity
from svc_jax.types import Features, Noise

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO = "generator.stablehlo"
ONNX = "generator.onnx"
INPUTS = (
    "f0_hz",
    "loudness_db",
    "asr_features",
    "weights",
    "z",
    "noise",
    "phase",
)
_TRACED_ASR_FRAMES = (40, 60)  # of the two graphs that an ONNX graph is made of


def _singing(model):
    """INPUTS -> audio."""
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

    return sing


def _shapes(model, asr_frames):
    """Of INPUTS, at a length in frames of content."""
    geometry = model.extractor.geometry
    num_singers = len(model.card.singers)
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
    return [jax.ShapeDtypeStruct((1, *length), jnp.float32) for length in lengths]


def _checked(name: str, content: bytes, model, call) -> bytes:
    """The content of a file, once its program (INPUTS -> audio) sings as the model."""
    num_singers = len(model.card.singers)
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

    parity.check(name, parity.distance(model, run))
    return content


def stablehlo(model) -> bytes:
    """The program for every platform and for any length, its parameters within.

    Raises:
      UserError: if on this machine it sings differently than the model.
    """
    (asr_frames,) = jax.export.symbolic_shape("A")
    exported = jax.export.export(jax.jit(_singing(model)), platforms=PLATFORMS)(
        *_shapes(model, asr_frames)
    )
    content = bytes(exported.serialize())
    call = jax.jit(jax.export.deserialize(content).call)
    return _checked(STABLEHLO, content, model, call)


def onnx(model) -> bytes:
    """The graph for any length, its parameters within.

    Raises:
      UserError: if jax2onnx is not installed, or the graph sings differently than the
        model.
    """
    shapes = functools.partial(_shapes, model)
    content = onnx_graphs.of_any_length(
        _singing(model), shapes, _TRACED_ASR_FRAMES, INPUTS, "audio"
    )
    return _checked(ONNX, content, model, onnx_graphs.runner(content, INPUTS))


# What `export --format` names: the file, and what writes it.
FORMATS = {"stablehlo": (STABLEHLO, stablehlo), "onnx": (ONNX, onnx)}
